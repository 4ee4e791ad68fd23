"""A task is questions, how to ask them and how to mark the answers; `ask` runs several and counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wellhead.engine.sampling_params import SamplingParams
from wellhead.text import encode_messages

if TYPE_CHECKING:
    from wellhead.engine.llm import LLM, Completion


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
    """One task's completions in the order of its questions, how many are right, and what was wrong with the others."""

    name: str
    right: int
    completions: Sequence[Completion] = field(repr=False)
    wrong: list[tuple[str, str, str]] = field(default_factory=list, repr=False)  # prompt, expected, generated

    @property
    def count(self) -> int:
        return len(self.completions)

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return sum(len(completion.token_ids) for completion in self.completions)

    @property
    def drafts(self) -> tuple[int, int, int]:
        """(steps that brought drafts, drafts, accepted ones)."""
        each = self.completions
        steps, drafted = sum(one.draft_steps for one in each), sum(one.drafted_tokens for one in each)
        return steps, drafted, sum(one.accepted_tokens for one in each)


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


def ask(llm: LLM, tasks: Sequence[Task], on_answer: Callable[[], object] = lambda: None) -> list[Result]:
    """Ask all questions of all tasks greedily and together, those of different tasks side by side; the engine runs as
    many at a time as it was built for. `on_answer` is called at each answer.
    """
    for task in tasks:
        if not task.questions:
            raise ValueError(f"task {task.name!r} has no questions")
    order = sorted(
        ((number, place) for number, task in enumerate(tasks) for place in range(len(task.questions))),
        key=lambda at: at[1] / len(tasks[at[0]].questions),
    )
    params = [SamplingParams(max_tokens=task.max_tokens, temperature=0.0, stop=task.stop) for task in tasks]
    prompts = [as_prompt(tasks[number].questions[place]) for number, place in order]
    answers = llm.generate(prompts, [params[number] for number, _ in order], on_answer)
    at = dict(zip(order, answers, strict=True))
    return [_marked(task, [at[number, i] for i in range(len(task.questions))]) for number, task in enumerate(tasks)]


def _marked(task: Task, completions: list[Completion]) -> Result:
    wrong = [
        (question.prompt, question.answer, completion.text)
        for question, completion in zip(task.questions, completions, strict=True)
        if not task.is_right(completion.text, question.answer)
    ]
    return Result(task.name, len(completions) - len(wrong), completions, wrong)
