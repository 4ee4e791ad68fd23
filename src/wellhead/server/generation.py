"""The two routes that generate: a body to a job in the engine, its pieces to one answer or a stream of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from wellhead.engine.llm import LLM
from wellhead.server import protocol
from wellhead.server.answers import ChatAnswer, Probabilities, Written, compact, think_end_of, usage
from wellhead.server.bridge import Bridge
from wellhead.server.errors import ApiError
from wellhead.server.job import Job, Piece
from wellhead.server.prepare import Prepared, Preparer
from wellhead.server.sse import DONE, EventStream, event

T = TypeVar("T")
_CLIENT_GONE = 499  # nobody reads it; it is counted


class Answering:
    """One HTTP request's answer: how its pieces are written. `shape` is Chat's or Completion's."""

    def __init__(self, shape: _Shape, job: Job, prepared: Prepared, forget: Callable[[Job], None]):
        self._shape, self._job, self._prepared, self._forget = shape, job, prepared, forget

    async def whole(self) -> bytes:
        """The answer as JSON."""
        ended: dict[int, Piece] = {}
        written: dict[int, Written] = {}
        try:
            async for index, piece in self._job.pieces():
                if (probabilities := self._shape.logprobs(index, piece)) is not None:
                    written.setdefault(index, Written()).add(probabilities)
                if index in ended:
                    ended[index].extend(piece)
                else:
                    ended[index] = piece
            parts = [compact(self._shape.head)[:-1], b',"choices":']
            for place, index in enumerate(sorted(ended)):
                choice = compact(self._shape.choice(index, ended[index]))
                parts += [b"," if place else b"[", choice[:-1], b',"logprobs":']
                parts += written[index].parts() if index in written else [b"null"]
                parts.append(b"}")
            found = self._shape.usage(self._job, self._prepared)
            return b"".join([*parts, b'],"usage":', compact(found), b"}"])
        finally:
            self._forget(self._job)

    async def events(self, with_usage: bool) -> AsyncGenerator[bytes, None]:
        head = {**self._shape.chunk_head, **({"usage": None} if with_usage else {})}
        try:
            async for index, piece in self._job.pieces():
                for choice in self._shape.chunks(index, piece):
                    yield event({**head, "choices": [choice]})
            if with_usage:
                yield event({**head, "choices": [], "usage": self._shape.usage(self._job, self._prepared)})
            yield DONE
        finally:
            self._forget(self._job)


class _Shape:
    """What chat and plain completions write differently."""

    kind, chunk_kind, prefix = "", "", ""

    def __init__(self, llm: LLM, model: str, top_logprobs: int | None):
        self.head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}", "object": self.kind, "created": int(time.time()),
            "model": model,
        }  # fmt: skip
        self.chunk_head = {**self.head, "object": self.chunk_kind}
        self._tokenizer = llm.tokenizer if llm.has_tokenizer else None
        self._eos = llm.engine.eos_ids
        self._probabilities = None if top_logprobs is None else Probabilities(self._tokenizer, top_logprobs)

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A whole choice, but for its `logprobs`."""
        raise NotImplementedError

    def logprobs(self, index: int, piece: Piece) -> dict[str, Any] | None:
        raise NotImplementedError

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        raise NotImplementedError

    def usage(self, job: Job, prepared: Prepared) -> dict[str, Any]:
        think_end = think_end_of(self._tokenizer) if prepared.thinking and self._tokenizer is not None else None
        return usage(prepared.prompt_tokens, job.requests, think_end)

    def _visible(self, piece: Piece) -> list[int]:
        """The piece's tokens without the end token."""
        ids = piece.token_ids
        return ids[:-1] if piece.finish_reason == "stop" and ids and ids[-1] in self._eos else ids


class _ChatShape(_Shape):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, llm: LLM, model: str, body: protocol.Chat, thinking: bool):
        super().__init__(llm, model, (body.top_logprobs or 0) if body.logprobs else None)
        self._thinking, self._most_one = thinking, body.parallel_tool_calls is False
        self._answers: dict[int, ChatAnswer] = {}

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        answer, _, reason = self._take(index, piece)
        found: dict[str, Any] = {"index": index, "message": answer.message, "finish_reason": reason}
        if answer.malformed is not None:
            found["malformed"] = answer.malformed
        return found

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        begun = index in self._answers
        answer, deltas, reason = self._take(index, piece)
        if not begun:
            deltas = [{"role": "assistant", "content": ""}, *deltas]
        found: list[dict[str, Any]] = [_chunk(index, delta) for delta in deltas]
        if self._probabilities is not None and piece.token_ids:
            if not found:
                found.append(_chunk(index, {}))
            found[-1]["logprobs"] = self.logprobs(index, piece)
        if reason is not None:
            found.append({**_chunk(index, {}), "finish_reason": reason})
            if answer.malformed is not None:
                found[-1]["malformed"] = answer.malformed
        return found

    def _take(self, index: int, piece: Piece) -> tuple[ChatAnswer, list[dict[str, Any]], str | None]:
        answer = self._answers.setdefault(index, ChatAnswer(self._thinking, self._most_one))
        deltas, reason = answer.push(piece.text), None
        if piece.finish_reason is not None:
            last, reason = answer.finish(piece.finish_reason)
            deltas = [*deltas, *last]
        return answer, deltas, reason

    def logprobs(self, index: int, piece: Piece) -> dict[str, Any] | None:
        return None if self._probabilities is None else self._probabilities.chat(self._visible(piece), piece.logprobs)


def _chunk(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


class _CompletionShape(_Shape):
    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, llm: LLM, model: str, body: protocol.Completion):
        super().__init__(llm, model, body.logprobs)
        self._offsets: dict[int, int] = {}

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return {"index": index, "text": piece.text, "finish_reason": piece.finish_reason}

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        return [{**self.choice(index, piece), "logprobs": self.logprobs(index, piece)}]

    def logprobs(self, index: int, piece: Piece) -> dict[str, Any] | None:
        if self._probabilities is None:
            return None
        offset = self._offsets.get(index, 0)
        found = self._probabilities.completion(self._visible(piece), piece.logprobs, offset)
        self._offsets[index] = offset + sum(map(len, found["tokens"]))
        return found


class Generation:
    """Answers bodies. `names` are the model's, the first is written into answers."""

    def __init__(self, bridge: Bridge, preparer: Callable[[], Preparer], names: list[str]):
        self._bridge, self._preparer, self._names = bridge, preparer, names

    def check_model(self, name: str | None) -> None:
        if name is not None and name not in self._names:
            known = ", ".join(self._names)
            raise ApiError(
                404, f"model {name[:100]!r} is not served here; {known} is", param="model", code="model_not_found"
            )

    async def chat(self, body: protocol.Chat, http: HttpRequest) -> Response:
        llm = self._bridge.serving()
        self.check_model(body.model)
        prepared = await self._prepare(body.choices, lambda: self._preparer().chat(body))
        shape = _ChatShape(llm, self._names[0], body, prepared.thinking)
        return await self._answer(shape, prepared, body, http)

    async def completion(self, body: protocol.Completion, http: HttpRequest) -> Response:
        llm = self._bridge.serving()
        self.check_model(body.model)
        prepared = await self._prepare(body.choices, lambda: self._preparer().completion(body))
        return await self._answer(_CompletionShape(llm, self._names[0], body), prepared, body, http)

    async def _prepare(self, choices: int, work: Callable[[], Prepared]) -> Prepared:
        with self._bridge.reserved(choices):
            return await asyncio.to_thread(work)

    async def _answer(self, shape: _Shape, prepared: Prepared, body: protocol.Sampling, http: HttpRequest) -> Response:
        job = self._bridge.submit(prepared.requests)
        answering = Answering(shape, job, prepared, self._bridge.forget)
        try:
            if not body.stream:
                return Response(await _unless_gone(answering.whole(), http), media_type="application/json")
            events = answering.events(bool(body.stream_options and body.stream_options.include_usage))
            # errors before the first token still have a status of their own
            first = await _unless_gone(anext(events), http)
        except BaseException:
            self._bridge.forget(job)
            raise
        return EventStream(first, events, self._bridge.limits.stall_seconds)


async def _unless_gone(work: Awaitable[T], http: HttpRequest) -> T:
    """The work's result; cancelled when the client leaves before."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(_CLIENT_GONE, "the client left", code="client_gone")
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
