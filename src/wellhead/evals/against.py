"""An answer beside the one of another way to compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wellhead.testing.ties import TIE_MARGIN, Verdict, judge

if TYPE_CHECKING:
    from wellhead.engine.llm import LLM


def judge_by(
    reference: LLM,
    prompt: Sequence[int],
    found: Sequence[int],
    expected: Sequence[int],
    budget: float = TIE_MARGIN["checkpoint"],
) -> Verdict:
    """`found` against what the reference answered to the ids of a prompt; where they part its teacher-forced logits
    decide (`testing.ties`). Nothing else may run on the reference meanwhile.
    """
    return judge(found, expected, lambda place: reference.logits([*prompt, *expected[:place]])[-1], budget)
