"""Requests that no client should send: broken bytes, wrong types, absurd sizes, contradictions, rude manners."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

CHAT, PLAIN, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"

_GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
    PLAIN: {"prompt": "hello", "max_tokens": 2},
    TOKENIZE: {"prompt": "hello"},
}
_FIELDS = (
    *(
        "messages prompt model n temperature top_p top_k seed stop max_tokens max_completion_tokens "
        "presence_penalty frequency_penalty logit_bias logprobs top_logprobs stream stream_options response_format "
        "tools tool_choice parallel_tool_calls reasoning_effort thinking chat_template_kwargs user metadata echo "
        "suffix best_of functions ignore_eos __proto__ constructor"
    ).split(),
    "", "\0",
)  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    """`data` goes to the socket as it is. manner: "read" the answer; "leave" after `bytes_read` bytes of it; "cut" the
    request in its middle; "stall", read slowly, then leave. statuses: right answers, None for any below 500.
    """

    name: str
    data: bytes
    manner: str = "read"
    bytes_read: int = 0
    statuses: tuple[int, ...] | None = None


def http(
    path: str, body: bytes, *, kind: str = "application/json", host: str = "localhost", method: str = "POST",
    length: int | None = None,
) -> bytes:  # fmt: skip
    head = [
        f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", f"Content-Type: {kind}",
        f"Content-Length: {len(body) if length is None else length}",
    ]  # fmt: skip
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def hostile_requests(seed: int) -> Iterator[Hostile]:
    """Without end."""
    draw = random.Random(seed)
    makers: list[Callable[[random.Random], Hostile]] = [
        _bytes, _truncated, _wrong_field, _wrong_field, _wrong_field, _deep, _huge, _ids, _contradiction,
        _schema, _head, _manners, _manners, _messages,
    ]  # fmt: skip
    while True:
        yield draw.choice(makers)(draw)


def _value(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON value, more often a bad one."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: draw.random() < 0.5,
        lambda: draw.choice((0, -1, 1, 2**31, 2**63, -(2**63), 10**40)),
        lambda: draw.choice((0.5, -0.1, 1e308, -1e308, 1e-320, float("nan"), float("inf"))),
        lambda: draw.choice(
            ("", "x", "\0", "\ud800", "\U0001f600" * 50, "<｜end▁of▁sentence｜>", "../../etc/passwd", "x" * 5000)
        ),
        lambda: [],
        lambda: {},
    ]
    if depth < 3:
        kinds += [
            lambda: [_value(draw, depth + 1) for _ in range(draw.randrange(4))],
            lambda: {draw.choice(_FIELDS): _value(draw, depth + 1) for _ in range(draw.randrange(4))},
        ]
    return draw.choice(kinds)()


def _path(draw: random.Random) -> str:
    return draw.choice((CHAT, CHAT, PLAIN, TOKENIZE))


def _bytes(draw: random.Random) -> Hostile:
    body = draw.choice(
        (
            b"", b"null", b"[]", b'"text"', b"\xff\xfe{}", b"\0" * 100, b"{" * 50, b"{}" * 50,
            b'{"prompt": "\xc3\x28"}', b'{"prompt": "\\ud800"}', b'{"prompt": "a", "prompt": 5}',
            draw.randbytes(draw.randrange(1, 400)),
            b'{"prompt": "a", "max_tokens": ' + b"9" * draw.choice((30, 5000)) + b"}",
        )
    )  # fmt: skip
    return Hostile("bytes", http(_path(draw), body), statuses=(400,))


def _truncated(draw: random.Random) -> Hostile:
    path = _path(draw)
    body = json.dumps(_GOOD[path]).encode()
    return Hostile("truncated JSON", http(path, body[: draw.randrange(1, len(body))]), statuses=(400,))


def _wrong_field(draw: random.Random) -> Hostile:
    path = _path(draw)
    body = dict(_GOOD[path])
    for _ in range(draw.randrange(1, 3)):
        body[draw.choice(_FIELDS)] = _value(draw)
    if not isinstance(body.get("max_tokens"), int) or not 0 <= body["max_tokens"] <= 2:
        body.setdefault("max_tokens", 2)
    # valid by chance it may be: never for long
    body["stop"] = body.get("stop", ["e"])
    return Hostile("wrong field", http(path, json.dumps(body).encode()))


def _deep(draw: random.Random) -> Hostile:
    depth = draw.choice((50, 500, 2000, 100_000))
    opening, closing = draw.choice((("[", "]"), ('{"a":', "}")))
    body = opening * depth + "1" + closing * depth
    if draw.random() < 0.5:
        body = json.dumps(_GOOD[CHAT])[:-1] + f', "metadata": {body}' + "}"
    return Hostile("deep JSON", http(CHAT, body.encode()))


def _huge(draw: random.Random) -> Hostile:
    size = draw.choice((10_000, 300_000))
    body: dict[str, Any] = draw.choice(
        (
            lambda: {"prompt": "x" * size},
            lambda: {"prompt": [[]] * size},
            lambda: {"prompt": ["a"] * size},
            lambda: {str(i): i for i in range(size // 10)},
            lambda: {"messages": [{"role": "user", "content": "x"}] * (size // 10)},
            lambda: {"prompt": "x", "logit_bias": {str(i): 1 for i in range(size // 10)}},
            lambda: {"prompt": "x", "stop": ["x"] * size},
            lambda: {"prompt": "x", "user": "y" * size, "max_tokens": 1},
            lambda: {"prompt": [5] * size},
        )
    )()
    return Hostile("huge", http(CHAT if "messages" in body else PLAIN, json.dumps(body).encode()))


def _ids(draw: random.Random) -> Hostile:
    bad = draw.choice((-1, 2**31 - 1, 2**31, 2**64, 10**6, -(2**40)))
    prompt: Any = [5, 6, bad] if draw.random() < 0.5 else [[5], [6, bad]]
    return Hostile("token ids", http(PLAIN, json.dumps({"prompt": prompt, "max_tokens": 1}).encode()), statuses=(400,))


def _contradiction(draw: random.Random) -> Hostile:
    change = draw.choice(
        (
            {"max_completion_tokens": 9},
            {"top_logprobs": 2},
            {"stream_options": {"include_usage": True}},
            {"tool_choice": "required"},
            {"thinking": {"type": "enabled"}, "reasoning_effort": "none"},
            {"response_format": {"type": "json_object"}, "ignore_eos": True},
            {"n": 129},
            {"max_tokens": 2**30},
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
        )
    )
    return Hostile("contradiction", http(CHAT, json.dumps({**_GOOD[CHAT], **change}).encode()), statuses=(400,))


def _schema(draw: random.Random) -> Hostile:
    schema: Any = draw.choice(
        (
            {"type": "foo"},
            {"$ref": "#"},
            {"$ref": "file:///etc/passwd"},
            {"enum": ["x" * 100_000]},
            {"enum": []},
            {"type": "string", "pattern": "(" * 200},
            {"type": "string", "pattern": "(a{1000}){1000}b"},
            {"not": {}},
            {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
            {"allOf": [{"type": "string"}, {"type": "null"}]},
            {
                "type": "object",
                "properties": {str(i): {"type": "string", "pattern": f"a{i}b*c{{1,50}}"} for i in range(500)},
            },
            {"type": "integer", "minimum": 10, "maximum": 1},
            _value(draw),
        )
    )
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return Hostile("schema", http(CHAT, json.dumps({**_GOOD[CHAT], "response_format": format_}).encode()))


def _messages(draw: random.Random) -> Hostile:
    roles = ("system", "user", "assistant", "tool", "developer", "latest_reminder", "king")

    def message() -> dict[str, Any]:
        made = {"role": draw.choice(roles), "content": _value(draw)}
        return {**made, "tool_calls": _value(draw)} if draw.random() < 0.3 else made

    messages = [message() for _ in range(draw.randrange(1, 6))]
    return Hostile("messages", http(CHAT, json.dumps({"messages": messages, "max_tokens": 1}).encode()))


def _head(draw: random.Random) -> Hostile:
    body = json.dumps(_GOOD[PLAIN]).encode()
    name, data, statuses = draw.choice(
        (
            ("content type", http(PLAIN, body, kind="text/plain"), (415,)),
            ("host", http(PLAIN, body, host="evil.example"), (403,)),
            ("method", http(PLAIN, body, method="DELETE"), (405,)),
            ("path", http("/v1/" + "x" * 3000, body), (404,)),
            ("long header", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", (400, 431)),
            ("no HTTP", draw.randbytes(60) + b"\r\n\r\n", (400,)),
            (
                "two lengths",
                b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
                (400,),
            ),
            ("too large", http(PLAIN, b" " * 100, length=1 << 40), (413,)),
            (
                "bad chunks",
                b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nx",
                (400,),
            ),
        )
    )
    return Hostile(name, data, statuses=statuses)


def _manners(draw: random.Random) -> Hostile:
    streamed, n = draw.random() < 0.8, draw.choice((1, 2))
    body = {"prompt": "hello", "max_tokens": 60, "ignore_eos": True, "stream": streamed, "n": n}
    data = http(PLAIN, json.dumps(body).encode())
    manner = draw.choice(("leave", "leave", "cut", "stall"))
    if manner == "cut":
        data = data[: draw.randrange(1, len(data))]
    return Hostile(f"manners: {manner}", data, manner, draw.choice((0, 1, 300, 900)))
