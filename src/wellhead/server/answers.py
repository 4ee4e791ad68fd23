"""What a choice's text becomes on the wire: content, reasoning and tool calls; token probabilities; usage."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from wellhead.engine.request import Request
from wellhead.text import (
    ContentDelta,
    Event,
    MalformedAnswer,
    ReasoningDelta,
    StreamParser,
    Tokenizer,
    ToolCallArguments,
    ToolCallBegin,
)
from wellhead.text import chat_markup as markup

_LEAST_LOGPROB = -9999.0  # JSON has no -inf; OpenAI's API writes this


class ChatAnswer:
    """One choice of a chat while it grows: text in, deltas of an assistant message out.

    Text that breaks the answer grammar is passed on as content from there on, and `malformed` says how it broke it.
    """

    def __init__(self, thinking: bool, most_one_call: bool):
        self._parser = StreamParser(thinking)
        self._most_one = most_one_call
        self.malformed: str | None = None
        self.message: dict[str, Any] = {"role": "assistant", "content": None}
        self.calls = 0

    def push(self, text: str) -> list[dict[str, Any]]:
        """Deltas made certain by more text."""
        if self.malformed is not None:
            return self._collected([{"content": text}] if text else [])
        try:
            return self._collected(self._deltas(self._parser.push(text)))
        except MalformedAnswer as error:
            self.malformed = str(error)
            return self._collected([*self._deltas(error.events), {"content": self._parser.held}])

    def finish(self, reason: str) -> tuple[list[dict[str, Any]], str]:
        """The last deltas, and the finish reason as OpenAI has it."""
        deltas = [] if self.malformed else self._collected(self._deltas(self._parser.finish()))
        if self.malformed is None and reason == "stop" and self._parser.unfinished not in (None, "the reasoning"):
            self.malformed = f"the answer ended inside {self._parser.unfinished}"
        return deltas, "tool_calls" if reason != "length" and self.calls and self.malformed is None else reason

    def _deltas(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for event in events:
            if isinstance(event, ReasoningDelta):
                deltas.append({"reasoning_content": event.text})
            elif isinstance(event, ContentDelta):
                deltas.append({"content": event.text})
            elif self._most_one and event.index > 0:
                continue
            elif isinstance(event, ToolCallBegin):
                self.calls += 1
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.index, "id": f"call_{secrets.token_hex(12)}", "type": "function"}
                deltas.append({"tool_calls": [{**call, "function": function}]})
            elif isinstance(event, ToolCallArguments):
                deltas.append({"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]})
        return deltas

    def _collected(self, deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for delta in deltas:
            for name in ("content", "reasoning_content"):
                if name in delta:
                    self.message[name] = (self.message.get(name) or "") + delta[name]
            for call in delta.get("tool_calls", ()):
                calls = self.message.setdefault("tool_calls", [])
                if "id" in call:
                    calls.append({"id": call["id"], "type": "function", "function": dict(call["function"])})
                else:
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        return deltas


class Probabilities:
    """Entries of `logprobs`: what the model itself gave each token, before biases, penalties and grammars."""

    def __init__(self, tokenizer: Tokenizer | None, top: int):
        self._tokenizer, self._top = tokenizer, top
        self._known: dict[int, tuple[str, list[int]]] = {}  # the same tokens are likely again and again

    def chat(self, token_ids: Sequence[int], rows: Sequence[dict[int, float]]) -> dict[str, Any]:
        content = []
        for token, row in zip(token_ids, rows, strict=False):
            likeliest = [self._entry(other, row[other]) for other in self._likeliest(row)]
            content.append({**self._entry(token, row[token]), "top_logprobs": likeliest})
        return {"content": content, "refusal": None}

    def completion(self, token_ids: Sequence[int], rows: Sequence[dict[int, float]], offset: int) -> dict[str, Any]:
        """`offset` counts the characters before these tokens, each token spelled by itself."""
        tokens, values, tops, offsets = [], [], [], []
        for token, row in zip(token_ids, rows, strict=False):
            spelled = self._spelled(token)[0]
            tokens.append(spelled)
            values.append(max(_LEAST_LOGPROB, row[token]))
            tops.append({self._spelled(other)[0]: max(_LEAST_LOGPROB, row[other]) for other in self._likeliest(row)})
            offsets.append(offset)
            offset += len(spelled)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _likeliest(self, row: dict[int, float]) -> list[int]:
        return sorted(row, key=lambda token: (-row[token], token))[: self._top]

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        spelled, data = self._spelled(token)
        return {"token": spelled, "logprob": max(_LEAST_LOGPROB, value), "bytes": data}

    def _spelled(self, token: int) -> tuple[str, list[int]]:
        """A token in words, and its bytes."""
        if token not in self._known:
            data = self._bytes(token)
            try:
                text = data.decode() if data else f"token_id:{token}"
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
            self._known[token] = text, list(data)
        return self._known[token]

    def _bytes(self, token: int) -> bytes:
        if self._tokenizer is None:
            return b""
        try:
            return self._tokenizer.token_bytes(token)
        except ValueError:  # a row of the vocabulary matrix beyond the tokenizer
            return b""


class Written:
    """`logprobs` of a choice as JSON, while they grow: writing them all at its end would hold up every other request,
    and as objects they take five times the memory.
    """

    def __init__(self) -> None:
        self._lists: dict[str, list[bytes]] = {}
        self._others: dict[str, Any] = {}

    def add(self, found: dict[str, Any]) -> None:
        """What `Probabilities` made of further tokens."""
        for name, value in found.items():
            if not isinstance(value, list):
                self._others[name] = value
            elif value:
                self._lists.setdefault(name, []).append(compact(value)[1:-1])
            else:
                self._lists.setdefault(name, [])

    def parts(self) -> Iterator[bytes]:
        yield b"{"
        for place, (name, lists) in enumerate(self._lists.items()):
            yield b",%s:[" % compact(name) if place else b"%s:[" % compact(name)
            for each, part in enumerate(lists):
                yield b"," + part if each else part
            yield b"]"
        for name, value in self._others.items():
            yield b",%s:%s" % (compact(name), compact(value))
        yield b"}"


def compact(value: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def usage(prompt_tokens: int, requests: Sequence[Request], think_end: int | None) -> dict[str, Any]:
    """Tokens of all choices; think_end is the token that ends the reasoning of a thinking answer."""
    generated = sum(len(request.output) for request in requests)
    found: dict[str, Any] = {
        "prompt_tokens": prompt_tokens, "completion_tokens": generated, "total_tokens": prompt_tokens + generated,
    }  # fmt: skip
    if think_end is not None:
        reasoning = sum(_before(request.output, think_end) for request in requests)
        found["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return found


def think_end_of(tokenizer: Tokenizer) -> int | None:
    try:
        return tokenizer.special(markup.THINK_END)
    except ValueError:
        return None


def _before(output: Sequence[int], token: int) -> int:
    return list(output).index(token) + 1 if token in output else len(output)
