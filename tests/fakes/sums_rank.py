"""One rank of several on cards: sums through memory, launched and in graphs, against the fp32 sum rounded once.

python sums_rank.py RANK WORLD RENDEZVOUS; prints the way taken and why, exits with 1 where a bit is wrong.
"""

from __future__ import annotations

import random
import sys

import torch
import torch.distributed as dist

from fakes import peer
from wellhead.model.parallel import Group
from wellhead.ops.peer_sum import limit

SIZES = (8 << 10, 14 << 10, 64 << 10, 256 << 10, 1 << 20)  # bytes; 14 KB are a row of V4-Pro
REPLAYS, INPUTS = 1000, 16


def parts(size: int, world: int, number: int, device: torch.device) -> torch.Tensor:
    """bf16 [world, size / 2] of every rank, the same on all."""
    generator = torch.Generator(device).manual_seed(size + number)
    scale = 2.0 ** torch.arange(world, device=device)[:, None]
    return (torch.randn(world, size // 2, generator=generator, device=device) * scale).bfloat16()


def same_bits(tensor: torch.Tensor, world: int) -> bool:
    """Whether every rank holds these bits."""
    others = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(others, tensor)
    return all(torch.equal(other.view(torch.int16), tensor.view(torch.int16)) for other in others)


def check(group: Group, size: int, device: torch.device) -> int:
    """Wrong numbers of all replays of one size; every graph has three sums, so that places change their turn."""
    inputs = [parts(size, group.world, number, device) for number in range(INPUTS)]
    expected = [peer.in_order(ranks) for ranks in inputs]
    work, small = torch.empty_like(expected[0]), torch.zeros(64, dtype=torch.bfloat16, device=device)
    wrong = torch.zeros((), dtype=torch.int64, device=device)

    def compute() -> None:
        group.reduce(small)
        group.reduce(work)
        group.reduce(small)

    for number in range(INPUTS):  # launched one by one
        work.copy_(inputs[number][group.rank])
        compute()
        wrong += (work.view(torch.int16) != expected[number].view(torch.int16)).sum()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    dice = random.Random(group.rank)
    for replay in range(REPLAYS):
        number = replay * 7 % INPUTS
        work.copy_(inputs[number][group.rank])
        if dice.random() < 0.1:
            torch.cuda._sleep(dice.randrange(200_000))  # ranks are seldom at the same place
        graph.replay()
        wrong += (work.view(torch.int16) != expected[number].view(torch.int16)).sum()
    return int(wrong) + (not same_bits(work, group.world))


def added_on_the_way(group: Group, device: torch.device) -> int:
    """Wrong numbers of sums whose parts are sums themselves, launched and replayed."""
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    for tokens in peer.TOKENS:
        own = peer.addends(group.rank, tokens).to(device)
        expected = peer.expected_of_addends(group.world, tokens).to(device).view(torch.int16)
        found, graph = torch.empty_like(own.last), torch.cuda.CUDAGraph()
        group.reduce(found, own)
        wrong += (found.view(torch.int16) != expected).sum()
        with torch.cuda.graph(graph):
            group.reduce(found, own)
        for _ in range(INPUTS):
            found.zero_()
            graph.replay()
            wrong += (found.view(torch.int16) != expected).sum()
    return int(wrong)


def main(rank: int, world: int, rendezvous: str) -> None:
    device = torch.device("cuda", rank)
    group = Group.join(rendezvous, rank, world, device, "one-shot")
    print(*group.sums, flush=True)
    found = {size: check(group, size, device) for size in SIZES if size <= limit(world)}
    beyond = parts(2 * limit(world), world, 0, device)[rank].clone()
    group.reduce(beyond)
    assert same_bits(beyond, world), "over NCCL"
    assert not any(found.values()), f"rank {rank}: wrong numbers by bytes: {found}"
    assert not (wrong := added_on_the_way(group, device)), f"rank {rank}: {wrong} wrong numbers of experts' sums"
    group.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
