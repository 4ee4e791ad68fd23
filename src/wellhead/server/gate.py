"""What every HTTP request passes first: who may ask, from which page, and how large a body may be. Plain ASGI, so that
nothing of a refused request is read or parsed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wellhead.server.errors import ApiError, busy, shown
from wellhead.server.limits import Limits
from wellhead.server.metrics import Metrics

OPEN = "/health"  # the one route that never asks for the key
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SWALLOWED = 8  # times the limit of a body that is read and dropped, so that its sender hears the answer
_SWALLOW_SECONDS = 5.0


def allowed_hosts(bound: str) -> frozenset[str] | None:
    """Names that the Host header may have where the server is bound to loopback: a page that resolves its own name to
    this machine (DNS rebinding) has another one. None, all, for other addresses.
    """
    loopback = bound in _LOOPBACK or bound.startswith("127.")
    return _LOOPBACK | {bound} if loopback else None


class Gate:
    """ASGI around the app."""

    def __init__(
        self, app: ASGIApp, *, key: str | None, bound: str, limits: Limits, metrics: Metrics, routes: Iterable[str]
    ):
        self._app, self._limits, self._metrics = app, limits, metrics
        self._key = None if key is None else hashlib.sha256(key.encode()).digest()
        self._hosts = allowed_hosts(bound)
        self._routes = frozenset(routes)
        self._buffered = 0  # bytes of all bodies being read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = self._counting(scope, send)
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check_host(headers)
            self._check_key(scope["path"], headers)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                _check_type(headers)
                receive = _replay(await self._body(headers, receive), receive)
        except ApiError as error:
            await error.response()(scope, receive, counted)
        except _Gone:
            return
        else:
            await self._app(scope, receive, counted)

    def _counting(self, scope: Scope, send: Send) -> Send:
        route = scope["path"] if scope["path"] in self._routes else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.responses.labels(route, str(message["status"])).inc()
            await send(message)

        return counted

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        if self._hosts is None:
            return
        given = headers.get(b"host", b"").decode("latin-1")
        name = given[1:].partition("]")[0] if given.startswith("[") else given.rpartition(":")[0] or given
        if name.lower().rstrip(".") not in self._hosts:
            raise ApiError(
                403, f"Host {shown(given)} is not this server, which is bound to loopback; ask for localhost, or bind "
                "another address with --host", code="host_not_allowed",
            )  # fmt: skip

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._key is None or path == OPEN:
            return
        scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
        given = value.strip()
        if scheme.lower() == b"basic":  # what a browser sends for the page: any name, the key as the password
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                given = b""
        elif scheme.lower() != b"bearer":
            given = b""
        # digests are of one length, and compared in a time that does not depend on them
        if not hmac.compare_digest(hashlib.sha256(given).digest(), self._key):
            asked = 'Basic realm="wellhead", charset="UTF-8"' if path == "/" else "Bearer"
            message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": asked})

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._limits.body_bytes
        length = headers.get(b"content-length", b"")
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                if length.isdigit() and int(length[:20]) > limit:
                    raise await self._too_large(receive, 0)
                return await self._read(receive, limit)
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise ApiError(408, f"the body took longer than {seconds:g} seconds to arrive", code="timeout") from None

    async def _read(self, receive: Receive, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                part, more = await _part(receive)
                if size + len(part) > limit:
                    raise await self._too_large(receive if more else None, size + len(part))
                if self._buffered + len(part) > limit * self._limits.bodies_factor:
                    await self._swallow(receive if more else None, size + len(part))
                    raise busy("too many bodies are being read at once; try again later", 1)
                size += len(part)
                self._buffered += len(part)
                parts.append(part)
                if not more:
                    return b"".join(parts)
        finally:
            self._buffered -= size

    async def _too_large(self, receive: Receive | None, size: int) -> ApiError:
        await self._swallow(receive, size)
        limit = self._limits.body_bytes
        return ApiError(413, f"the body is larger than {limit} bytes, the limit here", code="body_too_large")

    async def _swallow(self, receive: Receive | None, size: int) -> None:
        """Drop what a client is in the middle of sending, within bounds: it hears no answer before it is done."""
        limit = self._limits.body_bytes
        try:
            async with asyncio.timeout(_SWALLOW_SECONDS):
                while receive is not None and size <= limit * _SWALLOWED:
                    part, more = await _part(receive)
                    size += len(part)
                    if not more:
                        break
        except TimeoutError:
            pass


class _Gone(Exception):
    """The client left before its body was whole."""


async def _part(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] != "http.request":
        raise _Gone
    return message.get("body", b""), message.get("more_body", False)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body, then what the connection says."""
    waiting: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _check_type(headers: dict[bytes, bytes]) -> None:
    """JSON only: a page elsewhere cannot send that without asking first, and nobody here answers its question."""
    kind, _, rest = headers.get(b"content-type", b"").decode("latin-1").partition(";")
    charset = rest.lower().partition("charset=")[2].strip(' "')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        given = shown(headers.get(b"content-type", b"").decode("latin-1"))
        raise ApiError(
            415, f"Content-Type is {given}, expected application/json in UTF-8", code="unsupported_media_type"
        )
