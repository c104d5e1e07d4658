"""Builds that were killed: what they left in the store is removed, and Prefect is told at once that they are no more.

Without this the server learns it from heartbeats that stop (pipelines/servers.py), a minute and a half later.
"""

from __future__ import annotations

from contextlib import suppress

from store.open import Store
from store.running import Running


def bury(store: Store) -> list[Running]:
    """Mark the flow runs of builds that died as Crashed, and forget the builds; those that were buried.

    To be called within a flow, where a Prefect server is at hand. One that does not know the run is no obstacle.
    """
    dead = [running for running in store.under_way.list() if not running.alive]
    for running in dead:
        if running.flow_run is not None:
            with suppress(Exception):  # whatever a server may say: a build of today does not fail for one of yesterday
                _crashed(running)
        store.under_way.remove(running.id)
    return dead


def _crashed(running: Running) -> None:
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    run = UUID(running.flow_run)
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state
        if state is not None and not state.is_final():
            message = f"process {running.pid} on {running.host} was killed at node {running.node or 'none'}"
            client.set_flow_run_state(run, Crashed(message=message), force=True)
