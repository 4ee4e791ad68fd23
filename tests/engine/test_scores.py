"""Scores of a step: rows of several computations, in the order of the step's tokens."""

from __future__ import annotations

import pytest
import torch

from wellhead.engine.scores import Scores


def test_rows_and_log_probabilities_come_in_the_order_of_the_tokens() -> None:
    parts = [torch.randn(rows, 50, generator=torch.Generator().manual_seed(rows)) for rows in (3, 1, 5)]
    every, at = torch.cat(parts), [0, 7, 2, 8, 3]
    scores = Scores(parts, every.argmax(-1), at)
    tokens, chosen, top = [4, 0, 3, 1], [9, 8, 7, 6], [2, 1, 50, 3]
    assert torch.equal(scores.read(tokens), every[[3, 0, 8, 7]])
    told = scores.logprobs(tokens, chosen, top)
    for row, token, count, one in zip(every[[3, 0, 8, 7]].double(), chosen, top, told, strict=True):
        wanted = torch.log_softmax(row, -1)
        best = wanted.topk(count).indices.tolist()
        assert list(one) == list(dict.fromkeys([token, *best]))
        assert one == pytest.approx({i: float(wanted[i]) for i in one})


def test_nothing_is_read_of_no_token() -> None:
    scores = Scores([torch.zeros(2, 50)], torch.zeros(2, dtype=torch.int64), [0, 1])
    assert len(scores.read([])) == 0 and scores.logprobs([], [], []) == []
