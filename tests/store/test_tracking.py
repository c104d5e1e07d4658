"""The look at the tracking URI before any compute: what is refused, how fast, and with what advice."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from schemas.errors import InputError
from store.tracking import check_tracking, database_folder, resolve_tracking


class _Answers(BaseHTTPRequestHandler):
    ok = frozenset({"/health"})

    def do_GET(self) -> None:
        self.send_response(200 if self.path in self.ok else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers /health only."""
    with HTTPServer(("127.0.0.1", 0), _Answers) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_server_that_answers_passes(server: str) -> None:
    check_tracking(server)
    check_tracking(server + "/")


def test_another_kind_of_server_is_named(server: str) -> None:
    with pytest.raises(InputError, match="HTTP 404 on /version"):
        check_tracking(server + "/nothing-here")


def test_a_closed_port_is_refused_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match="bitsmith up"):
        check_tracking("http://127.0.0.1:9")
    assert time.perf_counter() - start < 3


def test_a_silent_server_is_refused_within_three_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = time.perf_counter()
        with pytest.raises(InputError, match="cannot be reached"):
            check_tracking(f"http://127.0.0.1:{mute.getsockname()[1]}")
        assert time.perf_counter() - start < 3


def test_files(tmp_path: Path) -> None:
    check_tracking(f"sqlite:///{tmp_path}/new/mlflow.db")
    check_tracking(str(tmp_path / "folder"))
    (tmp_path / "other.db").write_bytes(b"something else altogether")
    with pytest.raises(InputError, match="not a SQLite file"):
        check_tracking(f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(InputError, match="cannot be written"):
        check_tracking(f"sqlite:///{tmp_path}/other.db/mlflow.db")
    with pytest.raises(InputError, match="cannot be written"):
        check_tracking("sqlite:////proc/none/mlflow.db")
    assert not (tmp_path / "new").exists(), "looking creates nothing"


def test_resolved_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking("http://host:1/") == "http://host:1"
    assert resolve_tracking("runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_tracking("file:///srv/x") == "sqlite:////srv/x/mlflow.db"
    assert resolve_tracking("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    assert database_folder("sqlite:////srv/a.db") == Path("/srv")
    assert database_folder("http://host:1") is None
    for wrong in ("databricks://x", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(InputError):
            resolve_tracking(wrong)
