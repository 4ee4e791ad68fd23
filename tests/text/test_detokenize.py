"""Incremental detokenisation and stop strings: no half characters, and nothing depends on the cuts."""

from __future__ import annotations

import itertools
import random

import pytest

from wellhead.text.detokenize import Detokenizer, StopStrings
from wellhead.text.tokenizer import Tokenizer

TEXTS = ["深度求索！", "🧑🏽‍🚀👩‍👩‍👧", "naïve café — 𝔘𝔫𝔦", "ascii only", "混a🙂b龘", "x<think>y"]


def detokenize(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*map(detokenizer.push, ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_every_prefix_is_whole_characters(published: Tokenizer, byte_tokenizer: Tokenizer, text: str) -> None:
    for tokenizer in (published, byte_tokenizer):
        ids = tokenizer.encode(text)
        pieces = detokenize(tokenizer, ids)
        for prefix in itertools.accumulate(pieces):
            assert text.startswith(prefix)
        assert "".join(pieces) == text
        # A character comes with its last byte, not later.
        assert pieces[-1] == ""


def test_rare_characters_are_spread_over_ids(published: Tokenizer) -> None:
    """Guards the test above: some published ids do not end a character."""
    assert "" in detokenize(published, published.encode("🧑🏽‍🚀 龘"))[:-1]


@pytest.mark.parametrize("text", TEXTS)
def test_cut_off_ids_equal_decode(byte_tokenizer: Tokenizer, text: str) -> None:
    ids = byte_tokenizer.encode(text)
    for begin, end in itertools.combinations(range(len(ids) + 1), 2):
        pieces = detokenize(byte_tokenizer, ids[begin:end])
        assert "".join(pieces) == byte_tokenizer.decode(ids[begin:end])
        if begin == 0:
            assert all("\ufffd" not in piece for piece in pieces[:-1])


def test_bytes_that_are_not_utf8_equal_decode(byte_tokenizer: Tokenizer) -> None:
    pieces = {byte_tokenizer.token_bytes(i)[0]: i for i in range(256)}
    invalid = [
        b"\xff",
        b"a\x80b",
        b"\xe4\xbd\x41",
        b"\xf0\x9f\x98\xe4\xbd\xa0",
        b"\xc0\xaf",
        b"\xed\xa0\x80x",
        b"\xf5\x80",
    ]
    for data in invalid:
        ids = [pieces[byte] for byte in data]
        assert "".join(detokenize(byte_tokenizer, ids)) == byte_tokenizer.decode(ids) == data.decode("utf-8", "replace")


def test_random_ids_equal_decode(published: Tokenizer) -> None:
    draw = random.Random(1)
    added = [published.special(name) for name in ("<think>", "｜DSML｜", "<｜end▁of▁sentence｜>")]
    pool = [*added * 5, *published.encode("🧑🏽‍🚀龘鱻𝔘𝔫𝔦") * 3, *range(3, 200)]
    for _ in range(300):
        ids = draw.choices(pool, k=12)
        assert "".join(detokenize(published, ids)) == published.decode(ids)


def test_added_tokens_are_text(byte_tokenizer: Tokenizer) -> None:
    ids = [*byte_tokenizer.encode("a"), byte_tokenizer.special("<end｜>"), byte_tokenizer.special("<think>")]
    assert "".join(detokenize(byte_tokenizer, ids)) == "a<end｜><think>"


def test_unknown_id_is_refused(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="token id 4000 is not in"):
        Detokenizer(byte_tokenizer).push(4000)


def cut(text: str, stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    stop = StopStrings(stops)
    shown = ""
    for piece in pieces:
        emit, stopped = stop.push(piece)
        shown += emit
        assert stopped == (stop.matched is not None)
        assert text.startswith(shown)
    return shown + stop.finish(), stop.matched


@pytest.mark.parametrize(
    ("text", "stops", "shown", "matched"),
    [
        ("hello END there END", ["END"], "hello ", "END"),
        ("hello EN", ["END"], "hello EN", None),
        ("aaab", ["aab"], "a", "aab"),
        ("no stop here", [], "no stop here", None),
        ("one two", ["two", "one"], "", "one"),
        # The stop string that starts first wins, though "bc" is complete earlier.
        ("xabcd", ["bc", "abcd"], "x", "abcd"),
        ("xabce", ["bc", "abcd"], "xa", "bc"),
        # Only finish can tell that "abcd" will not come.
        ("xabc", ["bc", "abcd"], "xa", "bc"),
        ("你好。\n\nUser:", ["\n\nUser:", "。。"], "你好。", "\n\nUser:"),
        ("a.b", ["."], "a", "."),
    ],
)
def test_stop_strings_at_every_split(text: str, stops: list[str], shown: str, matched: str | None) -> None:
    assert cut(text, stops, [text]) == (shown, matched)
    assert cut(text, stops, list(text)) == (shown, matched)
    for split in range(len(text) + 1):
        assert cut(text, stops, [text[:split], text[split:]]) == (shown, matched)


def test_only_a_possible_beginning_is_held_back() -> None:
    stop = StopStrings(["END"])
    assert stop.push("abcE") == ("abc", False)
    assert stop.push("x") == ("Ex", False)
    assert stop.push("EN") == ("", False)
    assert stop.push("D more") == ("", True)
    assert stop.push("more") == ("", True)
    assert stop.finish() == ""


@pytest.mark.parametrize("stops", ["END", [""], ["a", ""]])
def test_bad_stop_strings(stops: list[str]) -> None:
    with pytest.raises(ValueError, match="expected a list of non-empty str"):
        StopStrings(stops)
