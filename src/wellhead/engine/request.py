"""A request's life: waiting, running (prompt in chunks, then token by token), finished."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from wellhead.engine.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort"]


class RequestError(ValueError):
    """A request that cannot be run; the message names the value, what was expected and the fix."""


@dataclass(eq=False)
class Request:
    """`computed` tokens are in the caches; `pages` and `state_slot` are owned while it runs."""

    prompt: list[int]
    params: SamplingParams
    max_tokens: int
    generator: torch.Generator
    output: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    state_slot: int | None = None
    finish_reason: FinishReason | None = None

    @property
    def pending(self) -> int:
        """Tokens known but not yet in the caches; 1 while decoding."""
        return len(self.prompt) + len(self.output) - self.computed

    @property
    def decoding(self) -> bool:
        return bool(self.output)

    @property
    def cached_tokens(self) -> int:
        """The most tokens it will keep in the caches; its last token is never fed back."""
        return len(self.prompt) + self.max_tokens - 1

    def next_tokens(self, count: int) -> list[int]:
        """The next `count` tokens to compute."""
        if self.computed >= len(self.prompt):
            start = self.computed - len(self.prompt)
            return self.output[start : start + count]
        return (self.prompt[self.computed : self.computed + count] + self.output)[:count]
