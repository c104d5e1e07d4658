"""Where lineage goes, and whether it can be reached: looked at before any compute, without importing MLflow."""

from __future__ import annotations

import http.client
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from schemas.errors import InputError

PATIENCE = 2.5
"""Seconds a tracking server has for its answer."""

ARTIFACTS = "mlflow-artifacts"
"""Folder beside a SQLite file for the files of its runs."""

_SQLITE = b"SQLite format 3\x00"
_WANTED = "http://HOST:PORT of an MLflow server, sqlite:///FILE, or a folder"


def resolve_tracking(uri: str) -> str:
    """The URI MLflow is given: a folder means `mlflow.db` in it, relative paths become absolute.

    MLflow 3.17 refuses its own old folder layout ("maintenance mode"), so a folder always holds a SQLite file.
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return uri.rstrip("/")
    if scheme == "sqlite":
        return f"sqlite:///{_database(uri)}"
    if scheme in ("", "file"):
        path = Path(urlsplit(uri).path if scheme else uri).absolute()
        return f"sqlite:///{path if path.suffix == '.db' else path / 'mlflow.db'}"
    raise InputError("unknown kind of tracking URI", where=uri, got=f"{scheme}:", wanted=_WANTED)


def database_folder(uri: str) -> Path | None:
    """The folder of a resolved sqlite URI's file; None for a server."""
    return _database(uri).parent if uri.startswith("sqlite:") else None


def check_tracking(uri: str) -> None:
    """InputError, within 3 seconds, unless `uri` can be logged to: the server answers, or the file is writable."""
    resolved = resolve_tracking(uri)
    if resolved.startswith("http"):
        _check_server(resolved)
    else:
        _check_file(_database(resolved))


def has_records(uri: str) -> bool:
    """Whether anything can have been logged there: a SQLite file that does not exist yet holds nothing."""
    resolved = resolve_tracking(uri)
    return resolved.startswith("http") or _database(resolved).exists()


def _database(uri: str) -> Path:
    text = uri.removeprefix("sqlite:///")
    if text in ("", ":memory:") or not uri.startswith("sqlite:///"):
        raise InputError("a SQLite tracking URI names a file", where=uri, got=text, wanted="sqlite:///FILE")
    return Path(text).absolute()


def _check_file(path: Path) -> None:
    """Open the file for writing, or put a nameless one where it would be: permission bits alone do not tell."""
    folder = next(p for p in path.parents if p.exists())
    try:
        if path.exists():
            with path.open("r+b") as file:
                head = file.read(len(_SQLITE))
            if head not in (b"", _SQLITE):
                raise InputError(
                    "not a SQLite file", where=str(path), got=repr(head), fix="name another file for MLflow"
                )
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            "MLflow's file cannot be written",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            fix="make its folder writable or name another place",
        ) from error


def _check_server(uri: str) -> None:
    """Ask for /health and /version in a thread, because name resolution knows no timeout."""
    answer: list[str] = ["no answer"]

    def ask() -> None:
        answer[0] = _probe(uri, "/health") and _probe(uri, "/version")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if answer[0]:
        raise InputError(
            "MLflow cannot be reached",
            where=uri,
            got=answer[0],
            wanted=f"an answer within {PATIENCE} s",
            fix="`bitsmith up` starts one; or point `tracking` at sqlite:///FILE",
        )


def _probe(uri: str, path: str) -> str:
    """Why `uri` + `path` does not answer 200, or nothing."""
    try:
        with urllib.request.urlopen(uri + path, timeout=PATIENCE):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code} on {path}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
