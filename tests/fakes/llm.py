"""A stand-in for the engine: answers from a function, one token a character, and remembers what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from wellhead.cli import options


@dataclass
class FakeCompletion:
    prompt_tokens: int
    token_ids: list[int]
    text: str
    finish_reason: str
    logprobs: Any = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    draft_steps: int = 0


@dataclass
class FakeDelta:
    text: str
    token_ids: list[int]
    finish_reason: str | None = None


class FakeTokenizer:
    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


@dataclass
class FakeLLM:
    answer: Callable[[str], str]
    paths: list[tuple[str, str, str]] = field(
        default_factory=lambda: [("linear", "cpu reference", "no card"), ("moe", "cpu reference", "no card")]
    )
    interrupt_after: int | None = None  # characters after which streaming meets a Ctrl-C
    prompts: list[str] = field(default_factory=list)
    params: list[Any] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)

    def _text(self, prompt: str, params: Any) -> tuple[str, str]:
        self.prompts.append(prompt)
        self.params.append(params)
        text, reason = self.answer(prompt)[: params.max_tokens], "length"
        for stop in params.stop:
            if stop in text:
                text, reason = text[: text.index(stop)], "stop"
        return text, reason

    def generate(
        self, prompts: Sequence[str], params: Sequence[Any], on_finished: Callable[[], object] = lambda: None
    ) -> list[FakeCompletion]:
        self.batches.append(len(prompts))
        completions = []
        for prompt, own in zip(prompts, params, strict=True):
            text, reason = self._text(prompt, own)
            completions.append(FakeCompletion(len(prompt), self.tokenizer.encode(text), text, reason))
            on_finished()
        return completions

    def stream(self, prompt: str, params: Any) -> Iterator[FakeDelta]:
        text, reason = self._text(prompt, params)
        for position, character in enumerate(text):
            if position == self.interrupt_after:
                raise KeyboardInterrupt
            yield FakeDelta(character, [ord(character)])
        yield FakeDelta("", [], reason)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def describe(self) -> list[tuple[str, str]]:
        return self.paths


def use(monkeypatch: pytest.MonkeyPatch, llm: FakeLLM, models: list[str | None] | None = None) -> FakeLLM:
    """Commands load this one; `models` takes the names that they asked for."""

    def load(model: str | None, args: object = None, **more: object) -> FakeLLM:
        if models is not None:
            models.append(model)
        return llm

    monkeypatch.setattr(options, "load", load)
    return llm
