"""The page as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.staticfiles import StaticFiles

from schemas.errors import InputError
from ui.render import STATIC, render
from ui.routes import actions, data, downloads, pages
from ui.security import guard
from ui.site import Site


def create_app(site: Site, *, any_host: bool = False) -> FastAPI:
    """All routes over one site. Nothing is served that describes them: no schema, no interactive docs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(site.catalog.lines)  # so that the first visitor does not wait for every record
        yield
        await run_in_threadpool(site.explorer.stop)

    app = FastAPI(title="Bitsmith", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.site = site
    app.middleware("http")(guard(site.token, any_host))
    for routes in (pages.router, data.router, downloads.router, actions.router):
        app.include_router(routes)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(InputError, _input_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _not_a_request)
    return app


def _answer(request: Request, code: int, what: str, details: dict[str, str] | None = None) -> Response:
    """JSON for scripts, a page for people."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"what": what, **(details or {})}, code)
    return HTMLResponse(render("error.html", here="", elsewhere={}, store="", code=code, what=what), code)


async def _input_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    details = {name: str(getattr(error, name)) for name in ("where", "got", "wanted", "fix")}
    return _answer(request, 422, error.what, details)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException | StarletteHTTPException)
    return _answer(request, error.status_code, str(error.detail))


async def _not_a_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    places = ", ".join(".".join(str(p) for p in fault["loc"]) for fault in error.errors())
    return _answer(request, 404 if request.method == "GET" else 422, "Nothing has this address.", {"where": places})
