"""`python -m ui --store URL`: show a store in a browser. Needs neither torch nor a network."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from schemas.errors import InputError
from ui.security import LOOPBACK, token_of

PORT = 8484


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ui", description="Show the builds of a store in a browser.")
    parser.add_argument("--store", metavar="URL", help="default: `store` in the state folder")
    parser.add_argument("--state", metavar="FOLDER", type=Path, help="default: $BITSMITH_HOME, else .bitsmith")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0 for any that is free")
    parser.add_argument("--prefect-url", metavar="URL", help="to link to runs")
    parser.add_argument("--mlflow-url", metavar="URL", help="to link to runs")
    parser.add_argument("--allow-remote", action="store_true", help="listen beyond loopback: everyone there may read")
    return parser.parse_args(arguments)


def listen(host: str, port: int, allow_remote: bool) -> socket.socket:
    """A socket that listens; InputError for a port that is taken or a host that others reach."""
    if host not in LOOPBACK and not allow_remote:
        raise InputError(
            "the page is for this machine", where="--host", got=host, wanted="127.0.0.1", fix="add --allow-remote"
        )
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # who asks before the page is up waits, and is answered
    except OSError as error:
        listener.close()
        raise InputError(
            "cannot listen", where=f"{host}:{port}", got=error, fix="choose another --port, or 0 for any"
        ) from error
    return listener


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; 2 for bad input."""
    asked = options(arguments)
    state = (asked.state or Path(os.environ.get("BITSMITH_HOME") or ".bitsmith")).resolve()
    try:
        listener = listen(asked.host, asked.port, asked.allow_remote)
        token = token_of(state / "ui-token")
        serve(listener, asked, state, token)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def serve(listener: socket.socket, asked: argparse.Namespace, state: Path, token: str) -> None:
    """Say where the page is, and answer."""
    import uvicorn

    from ui.app import create_app
    from ui.site import open_site

    site = open_site(asked.store or str(state / "store"), state, token, asked.prefect_url, asked.mlflow_url)
    config = uvicorn.Config(
        create_app(site, any_host=asked.allow_remote), log_level="warning", access_log=False, server_header=False
    )
    host, port = listener.getsockname()[:2]
    print(f"bitsmith page on http://{host}:{port}/#token={token}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
