"""A task is questions, how to ask them and how to mark the answers; `ask` runs one and counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wellhead.engine.sampling_params import SamplingParams
from wellhead.text import encode_messages

if TYPE_CHECKING:
    from wellhead.engine.llm import LLM


@dataclass(frozen=True)
class Question:
    """`prompt` is sent as it is, or as one user turn of a conversation where `chat` is true."""

    prompt: str
    answer: str
    chat: bool = False


@dataclass(frozen=True)
class Task:
    """`is_right(text, answer)` marks the generated text of one question."""

    name: str
    questions: Sequence[Question]
    is_right: Callable[[str, str], bool]
    max_tokens: int
    stop: tuple[str, ...] = ()

    def first(self, count: int | None) -> Task:
        """The same task with its first `count` questions; all of them for None."""
        return self if count is None else replace(self, questions=self.questions[:count])


@dataclass(frozen=True)
class Result:
    """Counts of one task. `tokens` are generated tokens, `seconds` the wall time of generating them."""

    name: str
    right: int
    count: int
    tokens: int
    seconds: float
    wrong: list[tuple[str, str, str]] = field(default_factory=list, repr=False)  # prompt, expected, generated


def first_line(text: str) -> str:
    """The answer in a generated text: its first line, stripped."""
    return text.split("\n", 1)[0].strip()


def matches_first_line(text: str, answer: str) -> bool:
    """Exact match of the stripped first line."""
    return first_line(text) == answer.strip()


def as_prompt(question: Question) -> str:
    """The text that is tokenised for one question."""
    if not question.chat:
        return question.prompt
    return encode_messages([{"role": "user", "content": question.prompt}], thinking_mode="chat")


def ask(
    llm: LLM, task: Task, *, batch: int = 16, on_batch: Callable[[int], None] = lambda questions: None
) -> Result:
    """Ask every question greedily, `batch` at a time; `on_batch` hears how many each batch answered."""
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if not task.questions:
        raise ValueError(f"task {task.name!r} has no questions")
    params = SamplingParams(max_tokens=task.max_tokens, temperature=0.0, stop=task.stop)
    right = tokens = 0
    seconds = 0.0
    wrong = []
    for start in range(0, len(task.questions), batch):
        asked = task.questions[start : start + batch]
        began = time.perf_counter()
        completions = llm.generate([as_prompt(question) for question in asked], params)
        seconds += time.perf_counter() - began
        for question, completion in zip(asked, completions, strict=True):
            tokens += len(completion.token_ids)
            if task.is_right(completion.text, question.answer):
                right += 1
            else:
                wrong.append((question.prompt, question.answer, completion.text))
        on_batch(len(asked))
    return Result(task.name, right, len(task.questions), tokens, seconds, wrong)
