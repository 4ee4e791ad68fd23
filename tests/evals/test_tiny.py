"""What the shipped bytes answer, greedily: the four families on held-out questions, and what recall rests on."""

from __future__ import annotations

import pytest
import torch

from wellhead.engine.llm import LLM, SamplingParams
from wellhead.evals.families import load_families
from wellhead.evals.task import Task, as_prompt, ask

LEAST = {"sums": 0.95, "capitals": 0.98, "chinese": 0.95, "recall": 0.90}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(progress=False)


def share(llm: LLM, task: Task) -> float:
    (result,) = ask(llm, [task])
    print(f"{task.name}: {result.right} of {result.count}, wrong {[(w[0][-30:], *w[1:]) for w in result.wrong[:5]]}")
    return result.right / result.count


@pytest.mark.parametrize(("family", "count"), [("sums", 400), ("capitals", 150), ("chinese", 200), ("recall", 200)])
def test_a_family_is_answered(llm: LLM, family: str, count: int) -> None:
    task = load_families()[family]
    assert len(task.questions) >= count
    assert share(llm, task) >= LEAST[family]


def test_recall_prompts_are_long_and_ask_behind_the_window(llm: LLM) -> None:
    window = llm.config.sliding_window
    for question in load_families()["recall"].questions:
        assert 200 <= len(llm.encode(as_prompt(question))) <= 515
        name = next(n for n in question.prompt.rsplit("\n", 1)[1].replace("?", "").split() if f"\n{n}: " in
                    "\n" + question.prompt)  # fmt: skip
        behind = question.prompt.split(f"{name}: {question.answer}\n", 1)[1]
        assert len(llm.tokenizer.encode(behind)) > window


def longest_recall(count: int) -> Task:
    task = load_families()["recall"]
    return Task("recall", sorted(task.questions, key=lambda q: -len(q.prompt))[:count], task.is_right, 8, task.stop)


def test_without_compressed_caches_recall_fails() -> None:
    assert share(LLM(progress=False, ablation="no_compressed"), load_families()["recall"].first(40)) < 0.20


def test_with_random_entries_instead_of_the_indexers_recall_falls(llm: LLM) -> None:
    """On the longest prompts about half of the visible entries are selected, so chance alone finds many."""
    task = longest_recall(40)
    chosen, drawn = share(llm, task), share(LLM(progress=False, ablation="random_selected"), task)
    assert chosen >= 0.9
    assert drawn <= chosen - 0.1


def test_any_chunking_gives_the_same_answer_and_nearly_the_same_logits(llm: LLM) -> None:
    ids = llm.encode(as_prompt(load_families()["recall"].questions[3]))
    whole = llm.logits(ids).log_softmax(-1)
    for chunks in ([100] * (len(ids) // 100) + [len(ids) % 100], [len(ids) - 9, *[1] * 9]):
        other = llm.logits(ids, [n for n in chunks if n]).log_softmax(-1)
        assert float((whole.exp() * (whole - other)).sum(-1).mean()) <= 1e-3
        assert torch.equal(whole[-1].argmax(), other[-1].argmax())


def test_thinking_mode_thinks_first(llm: LLM) -> None:
    from wellhead.text import ContentDelta, ReasoningDelta, StreamParser, encode_messages

    prompt = encode_messages([{"role": "user", "content": "What is 12 + 30?"}], thinking_mode="thinking")
    (completion,) = llm.generate([prompt], SamplingParams(max_tokens=40))
    parser = StreamParser(thinking=True)
    events = [*parser.push(completion.text), *parser.finish()]
    assert any(isinstance(event, ReasoningDelta) for event in events)
    assert "".join(event.text for event in events if isinstance(event, ContentDelta)) == "42"
