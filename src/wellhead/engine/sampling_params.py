"""How a request chooses its tokens and when it ends."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class SamplingParams:
    """Checked on construction; ValueError names the field, the value and what was expected.

    max_tokens      most tokens to generate, at least 1; the context's end may come first
    temperature     0 is greedy; otherwise logits are divided by it
    top_p           nucleus: shortest likeliest-first run of tokens reaching this probability, in (0, 1]
    top_k           only the k likeliest tokens; 0 for all
    seed            of this request's own draws; None draws a fresh one
    stop            strings that end the text (a str or several; not part of the text)
    ignore_eos      go on after an end-of-sequence token
    logprobs        report this many likeliest tokens (and the chosen one) per position; 0 for none
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, (tuple, list)) or not all(isinstance(s, str) and s for s in stop):
            raise ValueError(f"stop is {self.stop!r}, expected non-empty strings")
        object.__setattr__(self, "stop", tuple(stop))
        for name, least in (("max_tokens", 1), ("top_k", 0), ("logprobs", 0)):
            value = getattr(self, name)
            if not _is_int(value) or value < least:
                raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
        if not _is_number(self.temperature) or self.temperature < 0:
            raise ValueError(
                f"temperature is {self.temperature!r}, expected a finite number of at least 0 (0 is greedy)"
            )
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}, expected a number above 0 and at most 1")
        if self.seed is not None and (not _is_int(self.seed) or not 0 <= self.seed < 2**63):
            raise ValueError(f"seed is {self.seed!r}, expected None or an integer from 0 to 2^63 - 1")
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"ignore_eos is {self.ignore_eos!r}, expected True or False")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    size: Any = abs(value)
    return bool(size <= sys.float_info.max)  # isfinite raises for an integer beyond every float
