"""What every route needs: the store, the builds, the explorer, the runs, and where other services are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from store.open import Store
from ui.catalog import Catalog
from ui.explorer import Explorer
from ui.runs import Runs


@dataclass(frozen=True)
class Site:
    """One store, shown. `token` is asked of every request that changes something."""

    store: Store
    catalog: Catalog
    explorer: Explorer
    runs: Runs
    token: str
    prefect_url: str | None = None
    mlflow_url: str | None = None

    def links(self, flow_run: str | None, mlflow_run: str | None) -> dict[str, str]:
        """Pages of a build elsewhere, by the name of the service."""
        found = {}
        if self.prefect_url and flow_run:
            found["Prefect run"] = f"{self.prefect_url.rstrip('/')}/runs/flow-run/{flow_run}"
        if self.mlflow_url and mlflow_run:
            found["MLflow run"] = f"{self.mlflow_url.rstrip('/')}/#/runs/{mlflow_run}"
        return found


def open_site(
    store: str, state: Path, token: str, prefect_url: str | None = None, mlflow_url: str | None = None
) -> Site:
    """A site over a store's address; nothing is read yet."""
    opened = Store(store)
    return Site(opened, Catalog(opened), Explorer(store), Runs(state, store), token, prefect_url, mlflow_url)
