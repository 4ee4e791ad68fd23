"""The search behind stop strings and markup."""

from __future__ import annotations

import tracemalloc

from wellhead.text.hold_back import MarkerSearch


def test_first_and_complete() -> None:
    search = MarkerSearch(["bc", "abcd", "abxx"])
    assert search.first("zz") == (2, None)
    assert search.first("zzbc") == (2, "bc")
    assert search.first("zabcd") == (1, "abcd")
    assert search.first("zabc") == (1, None)
    assert search.complete("zabc") == (2, "bc")
    assert search.first("zabcz") == (2, "bc")
    assert search.complete("za") == (2, None)


def test_nothing_before_begin_counts() -> None:
    search = MarkerSearch(["ab"])
    assert search.first("xa", 2) == (2, None)
    assert search.first("abab", 1) == (2, "ab")
    assert search.complete("abz", 1) == (3, None)


def test_no_markers() -> None:
    assert MarkerSearch([]).first("anything") == (8, None)


def test_a_long_marker_takes_memory_by_its_length() -> None:
    marker = "ab" * 10_000
    search = MarkerSearch([marker])
    tracemalloc.start()
    try:
        assert search.first("xaba") == (1, None)
        assert search.first("xabb") == (4, None)
        assert search.first(f"x{marker}") == (1, marker)
        assert tracemalloc.get_traced_memory()[1] < 500 * len(marker)  # the compiled pattern takes 150
    finally:
        tracemalloc.stop()
