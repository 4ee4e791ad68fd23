"""The routes. One server process holds one of these: `make_app`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from wellhead import __version__
from wellhead.server import protocol
from wellhead.server.bridge import Bridge
from wellhead.server.errors import ApiError, from_validation, unavailable
from wellhead.server.gate import Gate
from wellhead.server.generation import Generation
from wellhead.server.prepare import Preparer

PAGE = Path(__file__).with_name("page.html")
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_ERROR = {
    "description": "an error in OpenAI's shape",
    "content": {"application/json": {"schema": {"type": "object", "required": ["error"], "properties": {"error": {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"}, "type": {"type": "string"},
            "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
        },
    }}}}},
}  # fmt: skip
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: _ERROR for status in (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
}


def make_app(
    bridge: Bridge, preparer: Callable[[], Preparer], names: list[str], *, bound: str, key: str | None = None,
    doing: Callable[[], str] = lambda: "loading",
) -> ASGIApp:  # fmt: skip
    """The ASGI app. `preparer` is asked for once the bridge serves; `names` the model answers to; `bound` the address
    listened at; `doing` says what a start-up is at.
    """
    app = FastAPI(title="wellhead", version=__version__, docs_url=None, redoc_url=None)
    started = int(time.time())
    generation = Generation(bridge, preparer, names)

    @app.post("/v1/chat/completions", responses=_REFUSALS)
    async def chat_completions(body: protocol.Chat, http: Request) -> Response:
        return await generation.chat(body, http)

    @app.post("/v1/completions", responses=_REFUSALS)
    async def completions(body: protocol.Completion, http: Request) -> Response:
        return await generation.completion(body, http)

    @app.post("/tokenize", responses=_REFUSALS)
    async def tokenize(body: protocol.Tokenize) -> Response:
        llm = bridge.serving()
        generation.check_model(body.model)
        with bridge.reserved(1):
            ids = await asyncio.to_thread(lambda: preparer().tokens(body))
        return JSONResponse({"count": len(ids), "max_model_len": llm.engine.context_length, "tokens": ids})

    def entry(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"id": name, "object": "model", "created": started, "owned_by": "wellhead"}
        if bridge.llm is not None:
            found["max_model_len"] = bridge.llm.engine.context_length
        return found

    @app.get("/v1/models/", include_in_schema=False)  # else the slash would be a model without a name
    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [entry(name) for name in names]})

    @app.get("/v1/models/{model:path}", responses={404: _ERROR})
    async def model(model: str) -> Response:
        generation.check_model(model)
        return JSONResponse(entry(model))

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "alive"}, 200 if bridge.failure is None else 500)

    @app.get("/ready", responses={503: _ERROR})
    async def ready() -> Response:
        if bridge.llm is None and bridge.failure is None and not bridge.draining:
            raise unavailable(f"not ready: {doing()}", "loading", 5)
        bridge.serving()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(bridge.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=_PAGE_HEADERS)

    _answer_errors(app)
    routes = [route.path for route in app.routes if isinstance(route, APIRoute)]
    return Gate(app, key=key, bound=bound, limits=bridge.limits, metrics=bridge.metrics, routes=routes)


def _answer_errors(app: FastAPI) -> None:
    """Every error in one shape."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return from_validation(error.errors()).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = {404: f"there is nothing at {request.url.path[:100]!r}", 405: f"{request.method} is not possible here"}
        message = said.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def unexpected(request: Request, error: Exception) -> Response:
        return ApiError(500, f"an error of the server: {type(error).__name__}", code="internal_error").response()

    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = [
        (ApiError, ours), (RequestValidationError, invalid), (HTTPException, http), (Exception, unexpected),
    ]  # fmt: skip
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)
