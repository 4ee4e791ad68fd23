"""Two greedy answers to one prompt: the same, apart by a tie, or different.

Where they part, both followed the same tokens, so the reference's logits behind these decide: what lies between its
best token and the lower of the two that were chosen is the top-2 margin when the answers took its two best tokens, and
more when one of them took another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

# In standard deviations of the row of logits, by precision ("checkpoint" and "exact" as in model.numerics). Two
# implementations that round alike are apart by sums in another order and by the bf16 and E4M3 roundings which those tip
# over: logits differ by up to 0.03 of their deviation in norm, a difference of two by sqrt(2) of that, and of many
# thousands of places the worst is allowed between two and three times as much. "exact" has fp32 sums alone.
TIE_MARGIN = {"checkpoint": 0.1, "exact": 1e-4}

Outcome = Literal["agree", "tie", "differ"]


@dataclass(frozen=True)
class Verdict:
    """`place` is the index of the first differing token, `margin` in deviations of the reference's logits there."""

    outcome: Outcome
    place: int = -1
    margin: float = 0.0

    def __str__(self) -> str:
        return "agree" if self.outcome == "agree" else f"{self.outcome} at token {self.place}, margin {self.margin:.3f}"


def judge(
    found: Sequence[int],
    expected: Sequence[int],
    logits_at: Callable[[int], torch.Tensor],
    budget: float = TIE_MARGIN["checkpoint"],
) -> Verdict:
    """`found` against the reference's `expected`; logits_at(i) is the reference's row [V] that chooses token i.

    An answer that merely ends early or late has no tie to excuse it: its margin is infinite. So has one where the
    reference gives no finite logits.
    """
    place = first_difference(found, expected)
    if place is None:
        return Verdict("agree")
    if place >= min(len(found), len(expected)):
        return Verdict("differ", place, math.inf)
    apart = margin(logits_at(place), found[place], expected[place])
    return Verdict("tie" if apart <= budget else "differ", place, apart)


def first_difference(found: Sequence[int], expected: Sequence[int]) -> int | None:
    """Where two token lists part, the end of the shorter included; None when they are the same."""
    for place, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return place
    return None if len(found) == len(expected) else min(len(found), len(expected))


def margin(row: torch.Tensor, *tokens: int) -> float:
    """From the best logit of a row [V] to the lowest of the `tokens`', in deviations of the row."""
    wide = row.double()
    apart = float((wide.max() - wide[list(tokens)].min()) / wide.std())
    return apart if math.isfinite(apart) else math.inf


@dataclass
class Tally:
    """Verdicts of many answers; of those that do not agree the text that names them, in the order they came."""

    agreed: int = 0
    ties: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict, what: str) -> None:
        if verdict.outcome == "agree":
            self.agreed += 1
        else:
            (self.ties if verdict.outcome == "tie" else self.wrong).append(f"{what}: {verdict}")
