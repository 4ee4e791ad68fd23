"""Wilson's interval against published values and its own defining equation."""

from __future__ import annotations

import math

import pytest

from wellhead.evals.wilson import wilson_interval

Z95 = 1.959963984540054


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(right: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=5e-5)  # printed to four places


@pytest.mark.parametrize(("right", "count"), [(1, 2), (3, 7), (50, 100), (999, 1000)])
def test_bounds_solve_the_score_equation(right: int, count: int) -> None:
    """Both bounds p satisfy |right/count - p| = z sqrt(p (1 - p) / count): what the interval means."""
    for bound in wilson_interval(right, count):
        assert abs(right / count - bound) == pytest.approx(Z95 * math.sqrt(bound * (1 - bound) / count), rel=1e-9)


def test_ends_are_exact_and_mirrored() -> None:
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("right", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(right: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"got {right} of {count}"):
        wilson_interval(right, count)
