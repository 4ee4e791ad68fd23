"""Straight-line PTX on arrays of 32-bit words: enough to run the inline assembly of the kernels without a card."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Words = np.ndarray
_STATEMENT = re.compile(r"([\w.]+)\s+(.+)")


def run(text: str, results: int, *given: Words) -> list[Words]:
    """Results $0, $1, .. of a block whose arguments follow them. ValueError for an instruction that is not known."""
    registers: dict[str, Words] = {f"${results + place}": words.astype(np.uint32) for place, words in enumerate(given)}

    def value(word: str) -> Words:
        return np.uint32(int(word, 0)) if word[0].isdigit() else registers[word]

    for statement in text.strip().removeprefix("{").removesuffix("}").split(";"):
        found = _STATEMENT.match(statement.strip())
        if found is None or found[1].startswith(".reg"):
            continue
        target, *sources = (word.strip() for word in found[2].split(","))
        if found[1] not in _DO:
            raise ValueError(f"{found[1]} is not known here; teach it to tests/fakes/ptx.py")
        registers[target] = _DO[found[1]](*map(value, sources))
    return [registers[f"${place}"] for place in range(results)]


def _permuted(a: Words, b: Words, selector: Words) -> Words:
    """Each byte of the result is one of the eight of b:a, by a nibble; sign replication is not known."""
    lanes = [(word >> np.uint32(8 * byte)) & np.uint32(0xFF) for word in (a, b) for byte in range(4)]
    picks = [(int(selector) >> (4 * place)) & 15 for place in range(4)]
    assert max(picks) < 8
    parts = [lanes[pick] << np.uint32(8 * place) for place, pick in enumerate(picks)]
    return parts[0] | parts[1] | parts[2] | parts[3]


def _times_halves(a: Words, b: Words) -> Words:
    def pairs(words: Words) -> Words:
        return np.ascontiguousarray(np.broadcast_to(words, np.shape(a))).view(np.float16)

    return (pairs(a) * pairs(b)).view(np.uint32)


_DO: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "add.u32": lambda a, b: a + b,
    "shl.b32": lambda a, b: a << b,
    "shr.b32": lambda a, b: a >> b,
    "prmt.b32": _permuted,
    "mul.f16x2": _times_halves,
}
