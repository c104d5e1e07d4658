"""Models of the Hub, by a stand-in on loopback: what is downloaded, and one error, soon, when nothing can be."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint

from schemas.calibrate import ModelSource
from schemas.errors import InputError
from store.models import SourceModel, open_model


def opened(source: str, cache: Path | None = None, revision: str | None = None) -> SourceModel:
    return open_model(ModelSource(step="model", source=source, revision=revision), cache)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m", shards=2)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_handler(folder: Path, log: list[str]) -> type[BaseHTTPRequestHandler]:
    """The part of the Hub's HTTP API that a download of org/tiny uses, over the files of `folder`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            files = sorted(p for p in folder.iterdir() if p.is_file())
            if path in ("/api/models/org/tiny", "/api/models/org/tiny/revision/main"):
                names = [{"rfilename": p.name} for p in files]
                self._send(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": names}).encode())
            elif path == f"/api/models/org/tiny/tree/{COMMIT}":
                tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0"} for p in files]
                self._send(json.dumps(tree).encode())
            elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
                log.append(path.rsplit("/", 1)[1])
                self._send((folder / path.rsplit("/", 1)[1]).read_bytes())
            else:
                self._send(b"{}", 404)

        def _send(self, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


@pytest.fixture
def hub(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A stand-in Hub that serves org/tiny, with an empty Hub cache; the names of the files it served."""
    log: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub_handler(local, log))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    set_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "hub")
    yield log
    server.shutdown()
    server.server_close()
    thread.join()


def set_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """As HF_ENDPOINT and HF_HUB_CACHE would, which huggingface_hub reads at import only."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_hub_model_is_downloaded_once_and_serves_offline(
    hub: list[str], local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors"):
        (local / name).write_bytes(b"x")
    model = opened("org/tiny", tmp_path / "cache")
    assert model.meta["name"] == "org/tiny" and model.digest == opened(str(local)).digest
    assert not {"pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors"} & set(hub)
    hub.clear()
    assert opened("org/tiny").digest == model.digest and hub == []
    set_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hub")
    assert opened("org/tiny").digest == model.digest


def test_hub_model_with_pickles_only_downloads_nothing(hub: list[str], local: Path) -> None:
    for path in local.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(InputError, match="pickle checkpoints are not read"):
        opened("org/tiny")
    assert hub == []


def _unavailable(source: str, revision: str | None = None) -> InputError:
    began = time.monotonic()
    with pytest.raises(InputError, match="neither a folder here, nor in the Hub cache, nor available") as error:
        opened(source, revision=revision)
    assert time.monotonic() - began < 60
    assert source in error.value.where and error.value.fix
    return error.value


def test_hub_that_says_no(hub: list[str]) -> None:
    assert "404" in _unavailable("org/other").got
    _unavailable("org/tiny", "no-such-revision")


def test_hub_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    set_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    assert "127.0.0.1" in _unavailable("org/tiny").got or "Connect" in _unavailable("org/tiny").got
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "ffline" in _unavailable("org/tiny", "main").got


def test_hub_that_never_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("store.sources.hub.SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_hub(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        assert "imeout" in _unavailable("org/tiny").got
