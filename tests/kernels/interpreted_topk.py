"""Top-k kernels against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

import pytest
import torch

from wellhead.ops.topk import api, reference
from wellhead.ops.topk.configs import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGE_PAGE = 2**31 // 64 + 5  # its slots do not fit 32 bits


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def expected(logits: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor | None, k: int) -> torch.Tensor:
    """The reference's entries through the page table."""
    columns = logits.shape[1]
    entries = reference.select(logits, lengths.clamp(0, columns), k)
    if table is None:
        return entries
    pages = table.long().gather(1, entries.clamp(min=0) // 64)
    return torch.where((entries < 0) | (pages < 0), -1, pages * 64 + entries.clamp(min=0) % 64)


def found(
    logits: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor | None, k: int,
    config: Config | None = None, dtype: torch.dtype = torch.int64, runs: int = 1,
) -> torch.Tensor:  # fmt: skip
    plan = api.plan(logits.shape[0], logits.shape[1], k, page=0 if table is None else 64, device=DEVICE)
    if config is not None:
        rows, splits = logits.shape[0], config.splits
        counts = torch.empty(2, rows, splits, 256, dtype=torch.int32, device=DEVICE)
        above = torch.empty(rows, 4, splits, dtype=torch.int32, device=DEVICE)
        plan = api.TopK(rows, plan.columns, k, plan.page, config, counts, plan.state, above)
    for workspace in (plan.counts, plan.state, plan.above):
        workspace.fill_(-77777)  # a plan's memory holds anything
    out = torch.full((logits.shape[0], k), -99, dtype=dtype, device=DEVICE)
    given = None if table is None else table.to(DEVICE)
    for _ in range(runs):  # a second run finds the first one's workspace
        plan.run(logits.to(DEVICE), lengths.to(DEVICE), given, out)
    return out.cpu()


def contents() -> dict[str, torch.Tensor]:
    columns = 700
    random = torch.randn(columns, generator=generator())
    return {
        "random": random,
        "all equal": torch.ones(columns),
        "three values": torch.randint(0, 3, (columns,), generator=generator()).float(),
        "bf16": random.bfloat16().float(),
        "equal in 24 bits": 1 + torch.randint(0, 300, (columns,), generator=generator()) * 2.0**-23,
        "zeros of both signs": torch.where(random > 0, 0.0, -0.0),
        "infinite": torch.where(random > 1, torch.inf, torch.where(random < 0, -torch.inf, random)),
        "nan": torch.where(random > 1.5, torch.nan, random),
        "denormal": random * 1e-39,
        "descending": -torch.arange(columns).float(),
    }


@pytest.mark.parametrize("config", [Config(0, 1024, 4), Config(4, 64, 4)], ids=["one", "split"])
@pytest.mark.parametrize("name", contents())
def test_every_kind_of_row(name: str, config: Config) -> None:
    row = contents()[name]
    lengths = torch.tensor([700, 0, 65, 333, 9999], dtype=torch.int32)
    logits = row.expand(len(lengths), -1).clone()
    for i, length in enumerate(lengths.tolist()):
        logits[i, max(length, 0) :] = torch.nan  # not visible, must not matter
    assert torch.equal(found(logits, lengths, None, 64, config), expected(logits, lengths, None, 64))


@pytest.mark.parametrize("splits", [0, 1])
def test_lengths_around_k_and_outside_the_row(splits: int) -> None:
    lengths = torch.tensor([0, 1, 63, 64, 65, -3, -(2**31), 2**31 - 1], dtype=torch.int32)
    logits = torch.randn(8, 130, generator=generator())
    out = found(logits, lengths, None, 64, Config(splits, 64 if splits else 256, 4), runs=2)
    assert torch.equal(out, expected(logits, lengths, None, 64))


@pytest.mark.parametrize("splits", [0, 2])
@pytest.mark.parametrize("k", [1, 200, 1024])
def test_slots_through_a_page_table(k: int, splits: int) -> None:
    logits = torch.randn(3, 1280, generator=generator(k))
    lengths = torch.tensor([1280, 1025, 190], dtype=torch.int32)
    table = torch.randperm(64, generator=generator(1))[:60].reshape(3, 20).int()
    table[0, 3], table[0, 5], table[1, 7] = LARGE_PAGE, 2**31 - 1, -1
    table[2, 3:] = -(2**31)  # past the row's length: never looked at
    config = Config(splits, 256 if splits else 2048, 4)
    assert torch.equal(found(logits, lengths, table, k, config), expected(logits, lengths, table, k))


def test_narrow_output_strided_rows_and_a_table_row_for_all() -> None:
    wide = torch.randn(4, 1000, generator=generator())
    logits = wide[::2, 100:740]
    table = torch.randperm(10, generator=generator(2)).int().expand(2, -1)
    lengths = torch.tensor([640, 600], dtype=torch.int32)
    out = found(logits, lengths, table, 96, dtype=torch.int32)
    assert out.dtype == torch.int32 and torch.equal(out.long(), expected(logits, lengths, table, 96))


def test_a_row_does_not_depend_on_its_neighbours_or_on_the_split() -> None:
    logits = torch.randn(5, 1500, generator=generator()).bfloat16().float()  # many ties
    lengths = torch.tensor([1500, 10, 1400, 0, 700], dtype=torch.int32)
    together = found(logits, lengths, None, 200)
    for splits in (1, 8):
        assert torch.equal(found(logits, lengths, None, 200, Config(splits, 128, 4)), together)
    for i in range(5):
        assert torch.equal(found(logits[i : i + 1], lengths[i : i + 1], None, 200)[0], together[i])


def test_a_long_row() -> None:
    """262,144 entries, a million tokens of context."""
    logits = torch.randn(1, 262144, generator=generator()).half().float()
    lengths = torch.tensor([262143], dtype=torch.int32)
    table = torch.arange(4096).flip(0).int().unsqueeze(0)
    assert torch.equal(found(logits, lengths, table, 512), expected(logits, lengths, table, 512))


def test_no_rows() -> None:
    assert found(torch.empty(0, 128), torch.empty(0, dtype=torch.int32), None, 64).shape == (0, 64)


def test_what_is_refused() -> None:
    for sizes, reason in (
        ((1, 128, 0), "k=0: 1 to"),
        ((70000, 128, 64), "rows=70000"),
        ((1, 0, 64), "columns=0"),
    ):
        with pytest.raises(ValueError, match=reason):
            api.plan(*sizes, device=DEVICE)
    with pytest.raises(ValueError, match=r"page=48: 0 .* or a power of two"):
        api.plan(1, 128, 64, page=48, device=DEVICE)
    plan = api.plan(2, 128, 64, device=DEVICE)
    logits, lengths = torch.zeros(2, 128, device=DEVICE), torch.zeros(2, dtype=torch.int32, device=DEVICE)
    table, out = (
        torch.zeros(2, 2, dtype=torch.int32, device=DEVICE),
        torch.zeros(2, 64, dtype=torch.int64, device=DEVICE),
    )
    for arguments, reason in (
        ((logits.double(), lengths, table, out), r"logits is torch.float64 \(2, 128\)"),
        ((logits, lengths.long(), table, out), "lengths is torch.int64"),
        ((logits, lengths, None, out), "table is None"),
        ((logits, lengths, table[:, :1], out), "1 pages of 64; 128 columns need more"),
        ((logits, lengths, table, out[:, :32]), r"out is torch.int64 \(2, 32\)"),
        ((logits.expand(3, 2, 128)[:, 0], lengths, table, out), "at most 2"),
    ):
        with pytest.raises(ValueError, match=reason):
            plan.run(*arguments)
