"""Whether two answers are the same, apart by a tie, or different."""

from __future__ import annotations

import math

import pytest
import torch

from wellhead.testing.ties import TIE_MARGIN, Tally, Verdict, judge, margin

ROW = torch.tensor([0.0, 5.0, 4.9, -3.0, 1.0])  # deviation 3.37
asked: list[int] = []


def at(place: int) -> torch.Tensor:
    asked.append(place)
    return ROW


def test_the_same_tokens_need_no_logits() -> None:
    asked.clear()
    assert judge([1, 2], [1, 2], at) == Verdict("agree") and judge([], [], at) == Verdict("agree")
    assert not asked


def test_a_small_margin_is_a_tie_and_a_large_one_is_not() -> None:
    asked.clear()
    verdict = judge([7, 2, 9], [7, 1, 4], at)
    assert verdict.outcome == "tie" and verdict.place == 1 and asked == [1]
    assert verdict.margin == pytest.approx(0.1 / float(ROW.double().std()), rel=1e-3)
    assert judge([7, 2, 9], [7, 1, 4], at, TIE_MARGIN["exact"]).outcome == "differ"
    assert judge([7, 0], [7, 1], at).outcome == "differ"


def test_a_third_token_is_not_excused_by_a_near_second() -> None:
    """Nor is a reference whose own token is not its best."""
    assert judge([4], [1], at).margin == judge([1], [4], at).margin == pytest.approx(4 / float(ROW.double().std()))
    assert judge([4], [1], at).outcome == judge([1], [4], at).outcome == "differ"


def test_an_answer_of_another_length_differs() -> None:
    for one, other in (([1], [1, 2]), ([1, 2], [1]), ([], [1])):
        verdict = judge(one, other, at)
        assert verdict.outcome == "differ" and verdict.place == min(len(one), len(other))
        assert verdict.margin == math.inf


def test_logits_that_are_not_finite_excuse_nothing() -> None:
    assert margin(torch.tensor([math.nan, 1.0, 2.0]), 0, 1) == math.inf
    assert judge([0], [1], lambda place: torch.full((4,), math.nan)).outcome == "differ"
    assert judge([0], [1], lambda place: torch.zeros(4)).outcome == "differ"


def test_a_tally_names_what_does_not_agree() -> None:
    tally = Tally()
    for verdict in (Verdict("agree"), Verdict("tie", 3, 0.0123), Verdict("differ", 0, 1.5)):
        tally.add(verdict, "sums 4")
    assert tally.agreed == 1
    assert tally.ties == ["sums 4: tie at token 3, margin 0.012"]
    assert tally.wrong == ["sums 4: differ at token 0, margin 1.500"]
