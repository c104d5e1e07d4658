"""Where a user's builds live: one state folder, a store URL and a tracking URI, each with a default."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.servers import local_tracking, prefect_settings
from pipelines.services import running, state_folder


@dataclass(frozen=True)
class Settings:
    """Resolved places of one invocation."""

    state: Path
    store: str
    tracking: str
    prefect_api: str | None
    """API of the Prefect server that `bitsmith up` started, if it lives."""

    @property
    def cache(self) -> Path:
        """Scratch and remembered digests of this machine."""
        return self.state / "cache"

    @property
    def builds(self) -> Path:
        """Exported builds."""
        return self.state / "builds"


def settings(store: str | None = None, tracking: str | None = None) -> Settings:
    """Explicit places win, then the running services, then the state folder's own."""
    state = state_folder().resolve()
    services = running(state)
    return Settings(
        state=state,
        store=store or str(state / "store"),
        tracking=tracking or (services.tracking_uri if services else None) or local_tracking(state),
        prefect_api=services.prefect_api_url if services else None,
    )


def prefect_environment(where: Settings) -> None:
    """Set the environment for a flow in this process; to be called before prefect is imported.

    Prefect's home is ours, nothing is sent anywhere, and the server that `bitsmith up` started is used.
    """
    for name, value in prefect_settings(where.state, where.prefect_api).items():
        if name != "NO_COLOR":  # that one is for services that log to files
            os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    # The first start in a new home creates a database: 25 s on an idle two-core machine, more on a busy one.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
