"""Token choice against float64 and an independent Philox. Run by test_interpreter.py, or natively with a card."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from wellhead.ops.sampling import api
from wellhead.ops.sampling.configs import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORD = np.uint64(0xFFFFFFFF)


def philox(seed: int, position: int, ids: np.ndarray) -> np.ndarray:
    """First words of Philox4x32-10 (Salmon et al. 2011), key = seed, counter = (id, position low, position high, 0)."""
    zero = np.zeros_like(ids, dtype=np.uint64)
    c = [ids.astype(np.uint64), zero + np.uint64(position & 0xFFFFFFFF), zero + np.uint64(position >> 32), zero]
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        k0, k1 = np.uint64(key[0]), np.uint64(key[1])
        c = [(b >> np.uint64(32)) ^ c[1] ^ k0, b & WORD, (a >> np.uint64(32)) ^ c[3] ^ k1, a & WORD]
        key = [key[0] + 0x9E3779B9 & 0xFFFFFFFF, key[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return c[0]


def kept(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Ids that may be drawn, likeliest first, in float64."""
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    p = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / temperature)
    before = np.cumsum(p) - p
    return order[before < top_p * p.sum()] if top_p < 1 else order


def drawn(logits: np.ndarray, temperature: float, top_k: int, top_p: float, seed: int, position: int) -> int:
    ids = np.sort(kept(logits, temperature, top_k, top_p))
    u = (philox(seed, position, ids).astype(np.float64) + 0.5) * 2.0**-32
    score = logits[ids].astype(np.float64) / temperature - np.log(-np.log1p(-u))
    return int(ids[np.argmax(score)])


def choose(
    logits: torch.Tensor, temperature: list[float], top_k: list[int], top_p: list[float], seed: list[int],
    position: list[int], config: Config | None = None,
) -> list[int]:  # fmt: skip
    rows, columns = logits.shape
    flags = {"sampled": any(temperature), "top_k": any(top_k), "top_p": any(p < 1 for p in top_p)}
    sampler = api.plan(rows, columns, **flags, device=DEVICE)
    sampler = dataclasses.replace(sampler, config=config)
    for workspace in (sampler.best, sampler.drawn, sampler.weights, sampler.counts, sampler.state):
        workspace.fill_(-77777)
    sampler.set(temperature, top_k, top_p, seed)
    out = torch.full((rows,), -99, dtype=torch.int64, device=DEVICE)
    sampler.run(logits.to(DEVICE), torch.tensor(position, dtype=torch.int64, device=DEVICE), out)
    return out.tolist()


def randn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_the_test_s_philox_is_the_published_one() -> None:
    assert philox(0, 0, np.array([0]))[0] == 0x6627E8D5


@pytest.mark.parametrize("splits", [1, 4])
def test_greedy(splits: int) -> None:
    logits = randn(8, 700)
    logits[1] = 0
    logits[2, [650, 17, 300]] = 9
    logits[3, 5], logits[3, 6] = torch.nan, torch.inf
    logits[4] = -torch.inf
    logits[5] = -torch.inf
    logits[5, 699] = -3e38
    logits[6] = -0.0
    logits[6, 400] = 0.0
    found = choose(logits, [0] * 8, [0] * 8, [1] * 8, [0] * 8, [0] * 8, Config(splits, 64, 4))
    assert found == [int(logits[0].argmax()), 0, 17, 5, 0, 699, 0, int(logits[7].argmax())]


SETTINGS = [
    (1.0, 0, 1.0), (0.7, 0, 1.0), (2.0, 5, 1.0), (1.0, 1, 1.0), (1.0, 0, 0.9), (0.6, 0, 0.3), (1.5, 40, 0.8),
    (1.0, 3, 0.999), (1.0, 0, 1e-6), (1e-6, 0, 0.5), (100.0, 600, 0.99), (0.0, 5, 0.5), (1.0, 9999, 0.95),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["random", "few values", "infinite"])
def test_draws_are_those_of_float64(kind: str) -> None:
    rows = len(SETTINGS)
    logits = randn(rows, 600, seed=1) * 3
    if kind == "few values":
        logits = logits.round().clamp(-2, 3)
    elif kind == "infinite":
        logits[:, ::3] = -torch.inf
    temperature, top_k, top_p = (list(column) for column in zip(*SETTINGS, strict=True))
    seed, position = [i * 2**40 - 7 for i in range(rows)], [i * 2**33 + i for i in range(rows)]
    found = choose(logits, temperature, top_k, top_p, seed, position, Config(2, 512, 4))
    for i, (t, k, p) in enumerate(SETTINGS):
        row = logits[i].numpy()
        expected = int(row.argmax()) if t == 0 else drawn(row, t, k, p, seed[i], position[i])
        assert found[i] == expected, (t, k, p)


def test_ties_at_both_edges_go_to_the_lower_ids() -> None:
    """8 tokens of equal weight: top-k keeps 6, then the nucleus ceil(6 p) of those."""
    ids = [3, 9, 20, 31, 33, 47, 50, 63]
    row = torch.full((64,), -50.0)
    row[ids] = 1.0
    edges = [(6, 1.0, 6), (6, 0.5, 3), (0, 0.5, 4), (6, 0.51, 4), (3, 0.9, 3), (0, 0.01, 1)]
    for top_k, top_p, last in edges:
        assert kept(row.numpy(), 1.0, top_k, top_p).tolist() == ids[:last]
    cases = [(top_k, top_p, seed) for top_k, top_p, last in edges for seed in (last,)]
    top_ks, top_ps, seeds = (list(column) for column in zip(*cases, strict=True))
    rows = len(cases)
    found = choose(row.expand(rows, -1), [1.0] * rows, top_ks, top_ps, seeds, [0] * rows, Config(2, 32, 4))
    assert found == [drawn(row.numpy(), 1.0, *case, 0) for case in cases]


def test_a_row_draws_the_same_in_any_batch_and_split() -> None:
    logits = randn(3, 250) * 2
    arguments = ([1.0, 0.8, 1.2], [0, 30, 0], [0.95, 0.9, 1.0], [5, 6, 7], [1, 2, 3])
    together = choose(logits, *arguments, Config(2, 128, 4))
    for i in range(3):
        alone = choose(logits[i : i + 1], *([values[i]] for values in arguments), Config(1 << i, 64 << i, 4))
        assert alone == [together[i]]


def test_noise_is_exponential_whatever_the_tail() -> None:
    """The published law of the race: P(i) = p_i; over positions, in the replica that the kernel equals."""
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03]))
    counts = np.bincount([drawn(logits, 1.0, 0, 1.0, 11, t) for t in range(4000)], minlength=5)
    expected = np.exp(logits) * 4000
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees: 1 in 1000


def test_no_rows_and_what_is_refused() -> None:
    assert choose(torch.empty(0, 64), [], [], [], [], []) == []
    greedy = api.plan(2, 64, sampled=False, device=DEVICE)
    sampler = api.plan(2, 64, sampled=True, device=DEVICE)
    for plan, values, reason in (
        (greedy, ([0.5], [0], [1.0], [0]), "row 0: uses temperature, and the plan was made without"),
        (sampler, ([1, 1], [0, 4], [1.0, 1], [0, 0]), "row 1: uses top_k"),
        (sampler, ([1], [0], [0.5], [0]), "row 0: uses top_p"),
        (sampler, ([-1], [0], [1], [0]), "temperature=-1"),
        (sampler, ([float("nan")], [0], [1], [0]), "temperature=nan"),
        (sampler, ([1], [-1], [1], [0]), "top_k=-1"),
        (sampler, ([1], [0], [0.0], [0]), "top_p=0.0"),
        (sampler, ([1], [0], [1], [2**63]), "seed=9223372036854775808"),
        (sampler, ([1, 1, 1], [0] * 3, [1] * 3, [0] * 3), "at most 2 rows"),
    ):
        with pytest.raises(ValueError, match=reason):
            plan.set(*values)
    with pytest.raises(ValueError, match="without sampled"):
        api.plan(1, 64, sampled=False, top_k=True, device=DEVICE)
    with pytest.raises(ValueError, match="columns=0"):
        api.plan(1, 0, sampled=False, device=DEVICE)
    with pytest.raises(ValueError, match=r"logits is torch\.bfloat16"):
        greedy.run(torch.zeros(2, 64).bfloat16(), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
