"""Who may ask for what: names that the page answers to, headers of every answer, the token of requests that change."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

TOKEN_HEADER = "x-bitsmith-token"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox allow-modals; frame-ancestors 'none'"
)
"""For the self-contained report, which has its style inside and no script."""

_SAFE = {"GET", "HEAD", "OPTIONS"}
_OPEN = ("/api/explore/",)
"""Questions that are asked with POST because they are long; they change nothing."""

Next = Callable[[Request], Awaitable[Response]]


def token_of(file: Path) -> str:
    """The token in a file that only its owner reads, made if there is none; it survives restarts."""
    try:
        known = file.read_text("ascii").strip()
        if len(known) >= 32:
            return known
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    file.parent.mkdir(parents=True, exist_ok=True)
    made = secrets.token_urlsafe(32)
    file.unlink(missing_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as out:
        out.write(made + "\n")
    return made


def guard(token: str, any_host: bool) -> Callable[[Request, Next], Awaitable[Response]]:
    """The middleware of the whole page.

    Only loopback names are answered to, or a page elsewhere could rebind its own name to this address and read the
    store. Cookies are not used at all: another page can send no header of ours, and so can change nothing.
    """

    async def middleware(request: Request, call_next: Next) -> Response:
        refused = _refusal(request, token, any_host)
        response = refused or await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if not request.url.path.startswith("/static/"):
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    return middleware


def _refusal(request: Request, token: str, any_host: bool) -> Response | None:
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    if not any_host and name not in LOOPBACK:
        return PlainTextResponse("This page answers to loopback names only.\n", 421)
    if request.method in _SAFE:
        return None
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return PlainTextResponse("Requests from other pages change nothing here.\n", 403)
    if not request.headers.get("content-type", "").startswith("application/json"):
        return PlainTextResponse("Send JSON.\n", 415)
    if request.url.path.startswith(_OPEN):
        return None
    given = request.headers.get(TOKEN_HEADER, "")
    if not secrets.compare_digest(given.encode(), token.encode()):
        return PlainTextResponse(
            "A token is needed: open the address that `bitsmith ui` or `bitsmith up` printed.\n", 401
        )
    return None
