"""The held-out families: generated recall questions, and marking."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from fakes.llm import FakeLLM
from wellhead.evals.families import load_families
from wellhead.evals.recall import recall_questions
from wellhead.evals.task import Question, Task, as_prompt, ask, matches_first_line

RECALL: dict[str, Any] = {
    "heads": ["Codes:\n", "List.\n"],
    "fact": "{name}: {value}\n",
    "asks": [{"text": "{name}:", "chat": False}, {"text": "Which is {name}?", "chat": True}],
    "names": ["Anna", "Ben", "Carl", "Dora", "Emil"],
    "values": ["red", "green", "blue"],
    "facts": [3, 5],
    "behind": 1,
    "count": 40,
    "seed": 7,
}


def test_answers_are_marked() -> None:
    questions = [Question("1 + 1 =", "2"), Question("2 + 2 =", "4")]
    llm = FakeLLM(lambda prompt: {"1 + 1 =": " 2\n1 + 2 = 3", "2 + 2 =": " 5"}[prompt])
    heard: list[None] = []
    (result,) = ask(llm, [Task("sums", questions, matches_first_line, 32, ("\n",))], lambda: heard.append(None))
    assert (result.right, result.count) == (1, 2)
    assert result.wrong == [("2 + 2 =", "4", " 5")]
    assert result.tokens == len(" 2") + len(" 5")  # the stop at the line break ends the first answer
    assert len(heard) == 2 and llm.batches == [2]
    assert all(params.temperature == 0.0 for params in llm.params)


def test_chat_questions_go_through_the_chat_encoding() -> None:
    question = load_families()["capitals"].questions[0]
    prompt = as_prompt(question)
    assert question.chat and question.prompt in prompt and prompt != question.prompt
    assert as_prompt(Question("1 + 1 =", "2")) == "1 + 1 ="


@pytest.mark.parametrize(
    ("text", "right"),
    [("42", True), (" 42 \n43", True), ("42.", False), ("142", False), ("", False), ("\n42", False)],
)
def test_marking_is_exact_on_the_first_line(text: str, right: bool) -> None:
    assert matches_first_line(text, "42") is right


def test_tasks_are_asked_side_by_side_and_marked_apart() -> None:
    tasks = [
        Task(name, [Question(f"{name}{i}", name) for i in range(count)], matches_first_line, max_tokens=tokens)
        for name, count, tokens in (("a", 4, 3), ("b", 2, 5))
    ]
    llm = FakeLLM(lambda prompt: "a" if prompt != "a2" else "wrong")
    first, second = ask(llm, tasks)
    assert llm.prompts == ["a0", "b0", "a1", "a2", "b1", "a3"] and llm.batches == [6]
    assert [params.max_tokens for params in llm.params] == [3, 5, 3, 3, 5, 3]
    assert (first.name, first.right, first.count) == ("a", 3, 4) and first.wrong == [("a2", "a", "wro")]
    assert (second.name, second.right, second.count, second.tokens) == ("b", 0, 2, 2)
    with pytest.raises(ValueError, match="task 'c' has no questions"):
        ask(llm, [Task("c", [], matches_first_line, 1)])


def test_recall_is_answerable_and_repeatable() -> None:
    questions = recall_questions(RECALL)
    assert questions == recall_questions(deepcopy(RECALL))
    assert questions != recall_questions({**RECALL, "seed": 8})
    lengths, places = set(), set()
    for i, question in enumerate(questions):
        head, *lines, asked = question.prompt.split("\n")
        assert f"{head}\n" in RECALL["heads"] and question.chat is bool(i % 2)
        name = asked.removeprefix("Which is ").rstrip("?:")
        facts = dict(line.split(": ") for line in lines)
        assert len(facts) == len(lines), "a name was used twice"
        assert facts[name] == question.answer
        place = list(facts).index(name)
        assert len(lines) - 1 - place >= RECALL["behind"]
        lengths.add(len(lines))
        places.add(place)
    assert lengths == {3, 4, 5} and places == {0, 1, 2, 3}
