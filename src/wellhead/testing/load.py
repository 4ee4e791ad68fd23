"""Load for an OpenAI endpoint, any server's: when requests arrive, what they ask, how long their tokens took."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Load:
    """`requests` arrivals of a Poisson process of `rate` a second (inf: all at once), at most `concurrency` open. A
    part `prefix_share` of the prompts begins with one of `prefixes` common texts of `prefix_words` words;
    `prompt_words` words of each are its own. Answers have at most `max_tokens` tokens, exactly so many with ignore_eos.
    """

    requests: int = 100
    rate: float = 2.0
    concurrency: int = 256
    prompt_words: int = 64
    prefix_words: int = 256
    prefix_share: float = 0.5
    prefixes: int = 4
    max_tokens: int = 32
    ignore_eos: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("requests", "concurrency", "prompt_words", "prefix_words", "prefixes", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.rate > 0:
            raise ValueError(f"rate is {self.rate}, expected more than 0 requests a second, or inf")
        if not 0 <= self.prefix_share <= 1:
            raise ValueError(f"prefix_share is {self.prefix_share}, expected 0 to 1")


@dataclass(frozen=True)
class Asked:
    """A request of the load: `at` seconds after the start."""

    at: float
    prompt: str
    shared: bool


@dataclass
class Answered:
    """What became of a request, in seconds: `at` its arrival, `first` and `last` its first and last token after that.
    tokens: as the server counts them, else pieces; error: None where it went well.
    """

    at: float
    shared: bool
    prompt_tokens: int = 0
    tokens: int = 0
    first: float = math.nan
    last: float = math.nan
    error: str | None = None

    @property
    def per_token(self) -> float:
        """Mean seconds a token after the first, nan where there is one at most."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else math.nan


def words_of_text() -> list[str]:
    """Some 60,000 words of English prose that every Python brings: its language reference."""
    from pydoc_data.topics import topics

    return " ".join(topics[name] for name in sorted(topics)).split()


def plan(load: Load, words: Sequence[str] | None = None) -> list[Asked]:
    """The load's requests in order of arrival; the same for the same seed."""
    draw = random.Random(load.seed)
    words = words_of_text() if words is None else words
    most = len(words) - max(load.prompt_words, load.prefix_words)
    if most < 1:
        raise ValueError(f"prompts of {load.prompt_words} and {load.prefix_words} words; there are {len(words)} words")

    def passage(count: int) -> str:
        start = draw.randrange(most)
        return " ".join(words[start : start + count])

    prefixes = [passage(load.prefix_words) for _ in range(load.prefixes)]
    at, asked = 0.0, []
    for _ in range(load.requests):
        if math.isfinite(load.rate):
            at += draw.expovariate(load.rate)
        shared = draw.random() < load.prefix_share
        own = passage(load.prompt_words)
        asked.append(Asked(at, f"{draw.choice(prefixes)}\n\n{own}" if shared else own, shared))
    return asked


async def run(
    load: Load, url: str, *, model: str | None = None, key: str | None = None, chat: bool = True
) -> list[Answered]:
    """Ask all of it of the endpoint at `url` (with or without /v1); results in order of arrival. `model` None takes the
    first that the endpoint lists.
    """
    import httpx

    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=load.concurrency)
    timeout = httpx.Timeout(None, connect=30)
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout) as client:
        try:
            name = model or (await client.get(f"{base}/models")).raise_for_status().json()["data"][0]["id"]
        except (httpx.HTTPError, LookupError, ValueError) as error:
            raise OSError(
                f"{base}/models: {error}; is this an OpenAI endpoint? give --model where it lists none"
            ) from None
        gate = asyncio.Semaphore(load.concurrency)
        began = time.perf_counter()

        async def one(asked: Asked) -> Answered:
            await asyncio.sleep(max(0.0, asked.at - (time.perf_counter() - began)))
            answered = Answered(time.perf_counter() - began, asked.shared)
            async with gate:
                try:
                    await _ask(client, base, _body(load, asked, name, chat), chat, answered, began)
                except (httpx.HTTPError, LookupError, TypeError, ValueError) as error:  # what it sent is no answer
                    answered.error = f"{type(error).__name__}: {error}"
            return answered

        return await asyncio.gather(*(one(asked) for asked in plan(load)))


def _body(load: Load, asked: Asked, model: str, chat: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model, "max_tokens": load.max_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    body |= {"messages": [{"role": "user", "content": asked.prompt}]} if chat else {"prompt": asked.prompt}
    return body | ({"ignore_eos": True} if load.ignore_eos else {})


async def _ask(client: Any, base: str, body: dict[str, Any], chat: bool, answered: Answered, began: float) -> None:
    """Stream one answer; times run from the arrival, so waiting for a free connection counts."""
    path = "chat/completions" if chat else "completions"
    pieces = 0
    async with client.stream("POST", f"{base}/{path}", json=body) as response:
        if response.status_code != 200:
            answered.error = f"{response.status_code}: {(await response.aread())[:300].decode(errors='replace')}"
            return
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                answered.error = str(event["error"])[:300]
                return
            if event.get("usage"):
                answered.prompt_tokens = event["usage"]["prompt_tokens"]
                answered.tokens = event["usage"]["completion_tokens"]
            says = any(_says(choice) for choice in event["choices"])
            pieces += says
            if says or any(choice.get("finish_reason") for choice in event["choices"]):
                answered.last = time.perf_counter() - began - answered.at
                if math.isnan(answered.first):  # an answer without text has its end as its first token
                    answered.first = answered.last
    answered.tokens = answered.tokens or pieces


def _says(choice: dict[str, Any]) -> bool:
    """Whether a piece of a stream carries text."""
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls")))
