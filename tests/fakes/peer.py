"""Ranks that add through common memory under Triton's interpreter, a process each: their cards' memory is mapped files.

python peer.py RANK WORLD FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from wellhead.model import sums
from wellhead.ops.addends import Addends
from wellhead.ops.peer_sum import PROGRAMS, PeerSum, place_words

TOKENS = (1, 5)  # whose experts are added up on the way
SIZES = (4096, 2, 514, 33_000, 4096)  # elements of one call after another: part of a tile, more than PROGRAMS tiles


def part(call: int, rank: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * call + rank)
    return torch.randn(size, generator=generator).bfloat16() * 2.0**rank


def in_order(ranks: Iterable[torch.Tensor]) -> torch.Tensor:
    """Their sum: fp32 in the order of the ranks, rounded once."""
    first, *others = ranks
    total = first.float()
    for other in others:
        total = total + other.float()
    return total.bfloat16()


def expected(call: int, world: int, size: int) -> torch.Tensor:
    return in_order(part(call, rank, size) for rank in range(world))


def addends(rank: int, tokens: int) -> Addends:
    """A rank's experts of four, of ids that are everybody's, nobody's and nowhere."""
    places, width = 6, 130
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(-1, 20, (tokens, places), generator=generator, dtype=torch.int32)
    generator.manual_seed(77 + rank)
    rows, last = (torch.randn(n, width, generator=generator).bfloat16() for n in (tokens * places, tokens))
    return Addends(rows, ids, 4 * rank, 4, last)


def expected_of_addends(world: int, tokens: int) -> torch.Tensor:
    """Of every rank's own sum, rounded."""
    return in_order(addends(rank, tokens).total() for rank in range(world))


def main(rank: int, world: int, folder: Path) -> None:
    from wellhead.testing.interpreter import repair

    repair()
    torch.set_num_threads(1)
    words = place_words(world)
    memories = [torch.from_file(str(folder / str(r)), shared=True, size=words, dtype=torch.int64) for r in range(world)]
    places = torch.tensor([memory.data_ptr() for memory in memories])
    peer_sum = PeerSum(rank, places, torch.zeros(PROGRAMS, dtype=torch.int32))
    for call, size in enumerate(SIZES):
        found = part(call, rank, size)
        peer_sum.run(found)
        assert torch.equal(found.view(torch.int16), expected(call, world, size).view(torch.int16)), (call, size)
    for tokens in TOKENS:
        found = torch.full((tokens, 130), torch.nan, dtype=torch.bfloat16)
        peer_sum.run(found, addends(rank, tokens))
        assert torch.equal(found.view(torch.int16), expected_of_addends(world, tokens).view(torch.int16)), tokens
    assert peer_sum.calls.tolist() == [len(SIZES) + len(TOKENS)] * PROGRAMS
    connection = sums.Connection(rank, world, torch.device("cpu"), lambda word: [word])
    connection.sum = peer_sum
    assert connection.trial() is None


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
