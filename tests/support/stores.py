"""Stores to test: one per kind of backend, a loopback S3, and ways to damage what is stored."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.base import digest_of
from store.open import Store
from store.traces import Trace

KINDS = ("local", "memory", "s3", "dir")
BUCKET = "bitsmith"


@contextmanager
def moto_server() -> Iterator[dict[str, Any]]:
    """An S3 on a free loopback port with one empty bucket; yields the options that a Store needs to reach it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_for(endpoint, server)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=30).close()
        yield {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
    finally:
        server.kill()
        server.wait()


def _wait_for(endpoint: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, "moto_server did not start"
            time.sleep(0.1)


def open_store(kind: str, folder: Path, s3: dict[str, Any] | None = None) -> Store:
    """A fresh, empty store of a kind; `folder` is for its files, if any, and its cache."""
    url = {
        "local": str(folder / "store"),
        "memory": f"memory://{uuid.uuid4().hex}",
        "s3": f"s3://{BUCKET}/{uuid.uuid4().hex}/store",
        "dir": f"dir::file://{folder / 'dir'}",
    }[kind]
    if kind == "dir":
        (folder / "dir").mkdir()
    store = Store(url, options=s3 if kind == "s3" else None, cache=folder / "cache")
    store.check_writable()
    return store


def forget_copies(store: Store) -> None:
    """Empty the local cache of a remote store, so that the next read goes to the store itself."""
    if store.cache:
        for path in store.cache.root.rglob("*"):
            if path.is_file():
                path.unlink()


def flip(store: Store, path: str, bit: int) -> None:
    """Flip one bit of a stored file, counted modulo its length."""
    data = bytearray(store.folder.read(path))
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    store.folder.replace(path, bytes(data))
    forget_copies(store)


def trace_of(number: int, outputs: dict[str, str], step: str = "quantize") -> Trace:
    """A plausible trace, distinct for every number."""
    document = {
        "step": step,
        "spec": {"bits": number % 8, "number": number},
        "code": "v1",
        "libraries": {"torch": "2.13.0"},
        "inputs": {"model": f"{number:064x}"},
    }
    return Trace(digest_of(document), document, outputs, {"seconds": 0.5})


def put_trace(store: Store, trace: Trace) -> Trace:
    """Record a trace that was made by `trace_of`."""
    return store.traces.put(trace.key, trace.document, trace.outputs, trace.facts)
