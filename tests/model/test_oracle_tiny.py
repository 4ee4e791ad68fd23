"""The embedded checkpoint against transformers with the same weights: exact, quantised, and in what it answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from oracles.transformers_v4 import oracle, relative
from wellhead.engine.llm import LLM, SamplingParams
from wellhead.evals.families import load_families
from wellhead.evals.task import as_prompt
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.parameters import load_parameters
from wellhead.model.weights import iter_tensors
from wellhead.text import encode_messages

POSITIONS, ROW = 2000, 500


@pytest.fixture(scope="module")
def other() -> Any:
    checkpoint = open_checkpoint(resolve_model())
    named = load_parameters(iter_tensors(checkpoint), checkpoint.config, with_mtp=False)
    return oracle(json.loads((checkpoint.folder / "config.json").read_text()), named)


@pytest.fixture(scope="module")
def ours() -> LLM:
    return LLM(progress=False)


def conversations(llm: LLM) -> list[tuple[list[int], list[int]]]:
    """(ids, places whose next token the model has to produce): held-out questions with their answers."""
    families = load_families()
    (end,) = llm.tokenizer.eos_ids
    rows: list[tuple[list[int], list[int]]] = []
    for question in [q for name in ("sums", "capitals", "chinese") for q in families[name].questions]:
        answer = [*llm.tokenizer.encode(question.answer if question.chat else f" {question.answer}"), end]
        if not rows or len(rows[-1][0]) > ROW:
            if sum(len(places) for _, places in rows) >= POSITIONS:
                break
            rows.append(([], []))
        ids, places = rows[-1]
        ids += llm.encode(as_prompt(question))
        places += range(len(ids) - 1, len(ids) - 1 + len(answer))
        ids += answer
    return rows


@torch.inference_mode()
def test_exact_numerics_agree_at_prefill_and_token_by_token(other: Any) -> None:
    exact = LLM(numerics="exact", progress=False)
    longest = max(load_families()["recall"].questions, key=lambda question: len(question.prompt))
    ids = exact.encode(as_prompt(longest))
    assert len(ids) > 450  # more C4 entries than the indexer may choose
    whole = other(torch.tensor([ids]), use_cache=False).logits[0]
    assert relative(exact.logits(ids), whole) < 1e-4
    start = len(ids) - 30
    assert relative(exact.logits(ids, [start, *[1] * 30]), whole) < 1e-4


@torch.inference_mode()
def test_quantised_numerics_agree_where_the_model_answers(other: Any, ours: LLM) -> None:
    """2,000 teacher-forced positions: FP8 activations, packed records and FP8 index keys against plain fp32."""
    agreed, divergence = [], []
    for ids, places in conversations(ours):
        expected = other(torch.tensor([ids]), use_cache=False).logits[0][places]
        found = ours.logits(ids)[places]
        agreed.append(expected.argmax(-1) == found.argmax(-1))
        p, q = expected.log_softmax(-1), found.log_softmax(-1)
        divergence.append((p.exp() * (p - q)).sum(-1))
    same, kl = torch.cat(agreed).float(), torch.cat(divergence)
    print(f"{same.numel()} positions: argmax agreement {same.mean():.4f}, KL {kl.mean():.2e}")
    assert same.numel() >= POSITIONS
    assert same.mean() >= 0.99
    assert kl.mean() <= 0.01


@torch.inference_mode()
def test_greedy_answers_are_the_same(other: Any, ours: LLM) -> None:
    families = load_families()
    prompts = ["15 + 27 ="]
    prompts += [
        encode_messages([{"role": "user", "content": text}])
        for text in ("What is the capital of France?", "Translate into Chinese: good morning")
    ]
    prompts.append(as_prompt(families["recall"].questions[0]))
    for prompt in prompts:
        ids = ours.encode(prompt)
        (mine,) = ours.generate([ids], SamplingParams(max_tokens=12))
        sequence, cache = list(ids), None
        fed = torch.tensor([ids])
        while len(sequence) < len(ids) + len(mine.token_ids):
            out = other(fed, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            sequence.append(int(out.logits[0, -1].argmax()))
            fed = torch.tensor([sequence[-1:]])
        assert sequence[len(ids) :] == mine.token_ids, prompt[-60:]
        assert mine.finish_reason == "stop"
