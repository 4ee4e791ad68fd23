"""A request's life: waiting, running (prompt in chunks, then token by token), finished; preempted, it waits again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from wellhead.engine.adjust import Adjust
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.speculative import Draft

FinishReason = Literal["stop", "length", "abort", "error"]


class RequestError(ValueError):
    """A request that cannot be run; the message names the value, what was expected and the fix."""


@dataclass(eq=False)
class Request:
    """`computed` tokens are in the caches; what it holds of them (the second group) is `Memory`'s to change.

    Preempted, it forgets its caches but no token and no draft, and its generator is not touched: numbers are drawn for
    new tokens (one each, without drafts), none for a token computed again.
    """

    prompt: list[int]
    params: SamplingParams
    max_tokens: int
    generator: torch.Generator
    adjust: Adjust | None = None
    output: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)  # guesses of what comes behind its newest token
    drafted: int = 0  # drafts computed so far, and how many of them were accepted
    accepted: int = 0
    draft_steps: int = 0  # steps that brought drafts
    computed: int = 0
    finish_reason: FinishReason | None = None
    error: Exception | None = None  # why it ended, where that is "error"

    pages: list[int] = field(default_factory=list)
    window_pages: list[int] = field(default_factory=list)  # beside `pages`; -1 behind the window
    state_slot: int | None = None
    behind: int = 0  # window pages already given back
    shared: int = 0  # leading pages that are the prefix cache's
    branch: int = 0  # where its prompt parts from the prefix cache's, in tokens; 0 when nowhere
    keys: list[bytes] = field(default_factory=list)  # of its first full pages

    @property
    def greedy(self) -> bool:
        """Whether its next token is the best id, so that a device need not wait for the host to choose it."""
        return self.adjust is None and self.params.temperature == 0

    @property
    def known(self) -> int:
        """Tokens it has, prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def pending(self) -> int:
        """Tokens known but not yet in the caches; 1 while decoding."""
        return self.known - self.computed

    @property
    def decoding(self) -> bool:
        """Whether one token is all there is to compute, behind others."""
        return self.computed > 0 and self.pending == 1

    @property
    def cached_tokens(self) -> int:
        """The most tokens it will keep in the caches; its last token is never fed back."""
        return len(self.prompt) + self.max_tokens - 1

    @property
    def last_draft(self) -> int:
        """The last place where a draft can be right: behind it lies its answer's last token, if it gets that long."""
        return len(self.prompt) + self.max_tokens - 2

    def tokens(self, start: int, stop: int) -> list[int]:
        """Tokens start .. stop-1 of prompt and output."""
        prompt = len(self.prompt)
        if start >= prompt:
            return self.output[start - prompt : stop - prompt]
        return self.prompt[start:stop] + self.output[: max(0, stop - prompt)]

    def next_tokens(self, count: int) -> list[int]:
        """The next `count` tokens to compute."""
        return self.tokens(self.computed, self.computed + count)
