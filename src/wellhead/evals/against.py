"""An answer beside the one of another way to compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wellhead.evals.task import Result, Task, as_prompt
from wellhead.testing.ties import TIE_MARGIN, Tally, Verdict, judge

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


def compare(reference: LLM, tasks: Sequence[Task], found: Sequence[Result], expected: Sequence[Result]) -> list[Tally]:
    """Each task's answers beside those that the reference gave to the same questions."""
    tallies = []
    for task, results in zip(tasks, zip(found, expected, strict=True), strict=True):
        tally = Tally()
        answers = zip(task.questions, *(result.completions for result in results), strict=True)
        for number, (question, one, other) in enumerate(answers, 1):
            prompt = reference.encode(as_prompt(question))
            tally.add(judge_by(reference, prompt, one.token_ids, other.token_ids), f"{task.name} {number}")
        tallies.append(tally)
    return tallies
