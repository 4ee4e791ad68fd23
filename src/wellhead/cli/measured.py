"""One streamed answer with its times, and the words for which path ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wellhead.engine.llm import LLM
    from wellhead.engine.sampling_params import SamplingParams


@dataclass
class Answer:
    """What was generated. `prefill_seconds` ends at the first token, `decode_seconds` covers the rest."""

    prompt_tokens: int
    text: str = ""
    tokens: int = 0
    first_tokens: int = 0  # tokens of the first delta: made by the prefill, not by decoding
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    finish_reason: str | None = None

    @property
    def prefill_speed(self) -> float | None:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds > 0 else None

    @property
    def decode_speed(self) -> float | None:
        """Generated tokens a second after the first; None where one token was all."""
        after = self.tokens - self.first_tokens
        return after / self.decode_seconds if after > 0 and self.decode_seconds > 0 else None


def stream_answer(llm: LLM, prompt: str, params: SamplingParams, write: Callable[[str], object]) -> Answer:
    """Stream one answer through `write`, and time it."""
    answer = Answer(prompt_tokens=len(llm.tokenizer.encode(prompt)))
    began = first = time.perf_counter()
    for delta in llm.stream(prompt, params):
        if answer.tokens == 0 and delta.token_ids:
            first = time.perf_counter()
            answer.first_tokens = len(delta.token_ids)
        answer.tokens += len(delta.token_ids)
        answer.text += delta.text
        answer.finish_reason = delta.finish_reason or answer.finish_reason
        write(delta.text)
    answer.prefill_seconds = first - began
    answer.decode_seconds = time.perf_counter() - first
    return answer


def speed(tokens_per_second: float | None) -> str:
    """Tokens a second as text; "-" where there was nothing to measure."""
    return "-" if tokens_per_second is None else f"{tokens_per_second:.1f}"


def path_taken(llm: LLM) -> str:
    """The implementations that ran: the one of most ops, then the others with their ops."""
    ops_of: dict[str, list[str]] = {}
    for op, path, _why in llm.describe():
        ops_of.setdefault(path, []).append(op)
    if not ops_of:
        return "unknown"
    most = max(ops_of, key=lambda path: len(ops_of[path]))
    others = [f"{path} ({', '.join(ops)})" for path, ops in ops_of.items() if path != most]
    return "; ".join([most, *others])
