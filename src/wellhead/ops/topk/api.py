"""Top-k as a plan: what may be allocated is allocated once, running it allocates nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops import scratch
from wellhead.ops.card import launch
from wellhead.ops.checks import expect_rows
from wellhead.ops.topk.configs import Config, choose_config, region

PAGE = 64  # entries of one index page
FILL = 128  # slots that a step fills with -1


@dataclass(frozen=True)
class TopK:
    """The k best of each row's first lengths[row] logits, as cache slots in ascending order of entry, then -1.

    Formula: entry c is chosen if fewer than min(k, length) entries beat it; c' beats c if logit(c') > logit(c), or
    they are equal and c' < c. NaN counts as above +inf, -0 as equal to +0. The slot of entry c is
    table[row, c // page] * page + c % page (-1 where that page is negative); with page 0 it is c itself.

    run(logits fp32 [rows, columns], lengths int32 [rows], table int32 [rows, pages], out int64 or int32 [rows, k]):
    rows may be strided, their entries not; lengths are clamped to [0, columns] and entries past them never matter,
    whatever they hold. Exact: bits are a function of the row alone, not of its neighbours or of the card. Does not
    allocate, synchronise or read a value of the device; one launch up to configs.SHORT columns, else three. out int32
    needs slots below 2^31.
    """

    rows: int
    columns: int
    k: int
    page: int
    config: Config
    bounds: torch.Tensor  # int32 [rows, splits]
    counts: torch.Tensor  # int32 [rows, splits]
    listed: torch.Tensor  # int32 [rows, splits, region]

    def __post_init__(self) -> None:
        if not self.config.splits and self.config.block < self.columns:
            raise ValueError(f"{self.config} for {self.columns} columns; a program alone holds a whole row")

    def run(self, logits: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor | None, out: torch.Tensor) -> None:
        """Write `out`. ValueError if a tensor is not what was planned."""
        rows = logits.shape[0]
        expect_rows("logits", logits, (rows, self.columns), torch.float32)
        if rows > self.rows:
            raise ValueError(f"logits has {rows} rows; the plan was made for at most {self.rows}")
        expect_rows("lengths", lengths, (rows,), torch.int32)
        expect_rows("out", out, (rows, self.k), torch.int64, torch.int32)
        if self.page:
            if table is None:
                raise ValueError(f"table is None; a plan with page={self.page} needs it, page=0 writes entries")
            expect_rows("table", table, (rows, table.shape[-1]), torch.int32)
            if table.shape[1] * self.page < self.columns:
                raise ValueError(f"table has {table.shape[1]} pages of {self.page}; {self.columns} columns need more")
        if rows:
            self._launch(logits, lengths, table if table is not None and self.page else lengths, out)

    def _launch(self, logits: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor, out: torch.Tensor) -> None:
        from wellhead.ops.topk.kernels import choose_row
        from wellhead.ops.topk.long_kernels import bound_share, choose_long, list_part

        rows, cut, width = logits.shape[0], self.config, self.listed.shape[-1]
        row, written = (logits, logits.stride(0), lengths), (table, table.stride(0), out, out.stride(0))
        last = {"PAGE": self.page, "FILL": FILL, **launch()}
        if not cut.splits:
            choose_row[(rows,)](*row, *written, self.columns, self.k, BLOCK=cut.block, num_warps=cut.num_warps, **last)
            return
        shared = {"SPLITS": cut.splits, "BLOCK": cut.block, "num_warps": cut.num_warps, **launch()}
        grid = (cut.splits, rows)
        bound_share[grid](*row, self.bounds, self.columns, self.k, **shared)
        list_part[grid](*row, self.bounds, self.counts, self.listed, self.columns, self.k, width, **shared)
        choose_long[(rows,)](
            *row, self.bounds, self.counts, self.listed, *written, self.columns, self.k, width,
            SPLITS=cut.splits, BLOCK=cut.last_block, num_warps=cut.last_warps, **last,
        )  # fmt: skip


def supports(rows: int, columns: int, k: int, page: int = PAGE) -> str | None:
    """None, or why these sizes cannot run."""
    if rows < 0 or rows > 65535:
        return f"rows={rows}: 0 to 65535 in one launch"
    if not 1 <= columns < 2**31 - 2**16:
        return f"columns={columns}: 1 to 2^31 - 2^16 - 1"
    if not 1 <= k <= 1 << 20:
        return f"k={k}: 1 to 1048576"
    if page and page & (page - 1):
        return f"page={page}: 0 (entries instead of slots) or a power of two"
    return None


def plan(rows: int, columns: int, k: int, *, page: int = PAGE, device: torch.device | str) -> TopK:
    """Allocate for at most `rows` rows of `columns` logits. ValueError names the limits.

    Nothing up to configs.SHORT columns; beyond, 4 bytes for each entry of a row that may be listed (`configs.region`):
    at most as much as the logits, at k = 512 64 KiB a row, 128 KiB from configs.WIDE columns on.
    """
    why = supports(rows, columns, k, page)
    if why is not None:
        raise ValueError(f"top-k cannot be planned: {why}")
    return planned(rows, columns, k, page, choose_config(columns), device)


def planned(rows: int, columns: int, k: int, page: int, config: Config, device: torch.device | str) -> TopK:
    """`plan` with a config of the caller's."""

    def empty(*shape: int) -> torch.Tensor:
        return scratch.empty(*shape, dtype=torch.int32, device=device)

    bounds, counts = empty(rows, config.splits), empty(rows, config.splits)
    listed = empty(rows, config.splits, region(config, columns, k))
    return TopK(rows, columns, k, page, config, bounds, counts, listed)
