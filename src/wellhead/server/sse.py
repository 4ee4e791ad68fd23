"""Server-sent events, to readers that may be slow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from wellhead.server.errors import ApiError

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class EventStream(StreamingResponse):
    """`first`, then `events` as they come; ends the request of a reader that takes nothing for `stall_seconds`."""

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None], stall_seconds: float):
        self._events = _guarded(first, events)
        super().__init__(self._events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def prompt_send(message: Any) -> None:
            async with asyncio.timeout(self._stall_seconds):
                await send(message)

        try:
            await super().__call__(scope, receive, prompt_send)
        except* (TimeoutError, ClientDisconnect):
            pass  # the reader is stuck or gone: what it did not read is lost
        finally:
            await self._events.aclose()


async def _guarded(first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes]:
    """The events; an error that comes in the middle is one of them."""
    try:
        yield first
        async for data in events:
            yield data
    except ApiError as error:
        yield event(error.body)
        yield DONE
    finally:
        await events.aclose()
