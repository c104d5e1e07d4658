"""`bitsmith up`, `down` and what is running on this machine: a Prefect server and worker, an MLflow server, the page.

State is `services.json` in the state folder. Reading it (`running`) needs no network and imports neither Prefect nor
MLflow, so every command can afford to ask.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipelines.processes import Handle, lives, reserve_port, start, stop, sweep
from schemas.errors import InputError

Say = Callable[[str], None]

ORDER = ("prefect", "mlflow", "page", "worker")
PORTS = {"prefect": 4200, "mlflow": 5000, "page": 8484}
"""Where we would like to listen; a port that is taken gives way to the next free one."""
USES = {"prefect": ("worker", "page"), "mlflow": ("page",)}
"""Who is told an address when it starts, and starts again with a new one."""

_FILE = "services.json"
PAGE_TOKEN = "ui-token"
"""File in the state folder that the page makes when it starts."""


@dataclass(frozen=True)
class Service:
    """One service: `name` is one of ORDER; a worker has no URL, `label` is its name at the server."""

    name: str
    pid: int
    started: float
    url: str
    log: str
    label: str = ""

    @property
    def handle(self) -> Handle:
        """How the process is recognised."""
        return Handle(self.pid, self.started)


@dataclass(frozen=True)
class ServiceState:
    """Services that were started and not stopped, by name; `mark` is in the environment of all they start."""

    folder: Path
    mark: str
    services: dict[str, Service]

    @property
    def prefect_api_url(self) -> str | None:
        """What PREFECT_API_URL must be to use the server."""
        return f"{self.services['prefect'].url}/api" if "prefect" in self.services else None

    @property
    def tracking_uri(self) -> str | None:
        """The MLflow server's URI."""
        return self.services["mlflow"].url if "mlflow" in self.services else None

    @property
    def page_url(self) -> str | None:
        """The page, with the token that lets it change things (in the fragment, which no server sees)."""
        token = self.folder / PAGE_TOKEN
        if "page" not in self.services:
            return None
        return f"{self.services['page'].url}/" + (f"#token={token.read_text().strip()}" if token.is_file() else "")


def state_folder() -> Path:
    """Where services keep their state: BITSMITH_HOME, else `.bitsmith` here. Flow runs of our worker have it set."""
    return Path(os.environ.get("BITSMITH_HOME") or ".bitsmith")


def running(folder: Path | None = None) -> ServiceState | None:
    """The services whose processes live; None when there are none."""
    state = _read(folder or state_folder())
    alive = {name: service for name, service in state.services.items() if lives(service.handle)}
    return replace(state, services=alive) if alive else None


def up(root: Path, folder: Path | None = None, *, say: Say = print, patience: float = 300) -> ServiceState:
    """Start what does not run yet, wait until all of it answers, deploy root/prefect.yaml when there is one.

    InputError with the end of the log when a service does not come up within `patience` seconds; then everything
    this call has started is stopped again.
    """
    folder = folder or state_folder()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        before = _read(folder)
        state = replace(before, services={n: s for n, s in before.services.items() if lives(s.handle)})
        for name in before.services.keys() - state.services.keys():
            say(f"{name} had died; its log is {before.services[name].log}")
        try:
            state = _start_missing(state, before, root, say, time.monotonic() + patience)
        except BaseException:
            now = _read(folder)
            new = [service for name, service in now.services.items() if before.services.get(name) != service]
            stop([service.handle for service in new], patience=5)
            for service in new:
                now = _with(now, service.name, None)
            raise
    _tell(state, say)
    return state


def down(folder: Path | None = None, *, say: Say = print) -> list[str]:
    """Stop what `up` started, and whatever that has started; the names of what was running.

    The worker goes first, while the server can still be told that its flow runs end.
    """
    folder = folder or state_folder()
    if not (folder / _FILE).exists():
        return []
    with _alone(folder):
        state = _read(folder)
        alive = [name for name in reversed(ORDER) if name in state.services and lives(state.services[name].handle)]
        stop([state.services[name].handle for name in alive if name == "worker"], patience=5)
        stop([state.services[name].handle for name in alive if name != "worker"], patience=8)
        sweep(state.mark)
        (folder / _FILE).unlink()
    for name in state.services.keys() - set(alive):
        say(f"{name} was gone already; its log is {state.services[name].log}")
    return alive


def show_status(folder: Path | None = None, *, say: Say = print) -> int:
    """One line per service; 0 when all of them run and answer, else 1."""
    from pipelines.servers import answers

    state = _read(folder or state_folder())
    if not state.services:
        say("nothing runs; `bitsmith up` starts the services")
        return 1
    good = True
    for name in ORDER:
        service = state.services.get(name)
        alive = service is not None and lives(service.handle)
        fine = alive and service is not None and (not service.url or answers(_health(service)))
        word = (
            "answers"
            if fine and service and service.url
            else "runs"
            if fine
            else "does not answer"
            if alive
            else "dead"
        )
        say(
            f"{name:8} {word:16} {service.url if service else ''} {'' if fine or not service else service.log}".rstrip()
        )
        good = good and fine
    return 0 if good else 1


def _start_missing(state: ServiceState, before: ServiceState, root: Path, say: Say, deadline: float) -> ServiceState:
    """Servers at once, then the worker and the deployments; the state is on disk after every start."""
    from pipelines import servers

    missing = [name for name in PORTS if name not in state.services]
    for user in dict.fromkeys(user for name in missing for user in USES.get(name, ())):
        if user in state.services:
            stop([state.services[user].handle], patience=5)
            state = _with(state, user, None)
            missing += [user] if user in PORTS else []
    with ExitStack() as ports:
        for name in missing:
            port, holder = reserve_port(_port_of(before.services.get(name)) or PORTS[name])
            ports.enter_context(holder)
            state = _launch(state, name, f"http://127.0.0.1:{port}", root)
        if missing:
            say("starting " + ", ".join(missing) + " (the first time takes half a minute)")
        if "prefect" in missing:
            _await(state, "prefect", deadline, lambda: servers.answers(_health(state.services["prefect"])))
        api = state.prefect_api_url or ""
        servers.install(api)
        if "worker" not in state.services:
            state = _launch(state, "worker", "", root)
        if (root / "prefect.yaml").is_file():
            log = state.folder / "logs" / "deploy.log"
            servers.deploy(root, servers.environment(state.folder, root, state.mark, api), log)
        for name in ("mlflow", "page", "worker"):
            service = state.services[name]
            _await(state, name, deadline, lambda service=service: _ready(service, api))  # type: ignore[misc]
    return state


def _launch(state: ServiceState, name: str, url: str, root: Path) -> ServiceState:
    from pipelines import servers

    port, label = int(url.rpartition(":")[2] or 0), f"bitsmith-{secrets.token_hex(3)}"
    linked = [state.services[n].url for n in ("prefect", "mlflow") if n in state.services]
    command = {
        "prefect": lambda: servers.prefect_command(port),
        "mlflow": lambda: servers.mlflow_command(port, state.folder),
        "page": lambda: servers.page_command(port, state.folder, *linked),
        "worker": lambda: servers.worker_command(label),
    }[name]()
    log = (state.folder / "logs" / f"{name}.log").absolute()
    log.write_bytes(b"")
    api = f"{url}/api" if name == "prefect" else state.prefect_api_url or ""
    handle = start(
        command, folder=state.folder, environment=servers.environment(state.folder, root, state.mark, api), log=log
    )
    return _with(state, name, Service(name, handle.pid, handle.started, url, str(log), label))


def _ready(service: Service, api: str) -> bool:
    from pipelines import servers

    return servers.answers(_health(service)) if service.url else servers.worker_is_online(api, service.label)


def _await(state: ServiceState, name: str, deadline: float, ready: Callable[[], bool]) -> None:
    """Wait until `ready`, the process dies, or the deadline passes."""
    from pipelines.servers import tail

    service = state.services[name]
    while not ready():
        alive = lives(service.handle)
        if not alive or time.monotonic() > deadline:
            fault = f"{name} does not answer" if alive else f"{name} ended before it answered"
            raise InputError(fault, where=service.log, got="\n" + tail(Path(service.log)), fix="see the log")
        time.sleep(0.25)


def _health(service: Service) -> str:
    return service.url + ("/api/health" if service.name == "prefect" else "/health")


def _port_of(service: Service | None) -> int | None:
    return int(service.url.rpartition(":")[2]) if service and service.url else None


def _tell(state: ServiceState, say: Say) -> None:
    say(f"page     {state.page_url}")
    say(f"Prefect  {state.services['prefect'].url}")
    say(f"MLflow   {state.services['mlflow'].url}")
    say(f"worker   {state.services['worker'].label}, logs in {state.folder / 'logs'}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One `up` or `down` at a time per state folder; the lock ends with its process."""
    with (folder / "services.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "another `bitsmith up` or `down` is at work", where=str(folder), fix="wait for it"
            ) from error
        yield


def _read(folder: Path) -> ServiceState:
    """What the file says; an empty state when there is no file, or a broken one."""
    try:
        data = json.loads((folder / _FILE).read_text())
        services = {name: Service(**fields) for name, fields in data["services"].items()}
        return ServiceState(folder, str(data["mark"]), services)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ServiceState(folder, secrets.token_hex(8), {})


def _with(state: ServiceState, name: str, service: Service | None) -> ServiceState:
    """The state with one service set or removed, also on disk (replaced whole, so it is never half written)."""
    services = {**state.services, **({name: service} if service else {})}
    if service is None:
        del services[name]
    text = json.dumps({"mark": state.mark, "services": {n: asdict(s) for n, s in services.items()}}, indent=1)
    part = state.folder / f"{_FILE}.{socket.gethostname()}.{os.getpid()}"
    part.write_text(text)
    part.replace(state.folder / _FILE)
    return replace(state, services=services)
