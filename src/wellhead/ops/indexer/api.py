"""The indexer as plans: index logits over paged keys, and the rounding of queries. `ops.compressor` writes the keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.formats import index_key
from wellhead.formats.paged import PagedLayout
from wellhead.ops.card import launch
from wellhead.ops.checks import byte_pages, expect
from wellhead.ops.indexer.configs import PAGE, QUERY_WARPS, VECTORS, Config, choose_config

LAYOUTS = {"fp8": index_key.FP8, "fp4": index_key.FP4}
MOST_HEADS = 64


@dataclass(frozen=True)
class Query:
    """Rounded queries: codes E4M3 [T, H, 128] and no scale (it is folded into the weights), or MXFP4 codes u8
    [T, H, 64] and scale u8 [T, H, 4].
    """

    codes: torch.Tensor
    scale: torch.Tensor | None = None


@dataclass(frozen=True)
class IndexLogits:
    """out[t, c] = sum over h of relu(q[t, h] . k[c]) weights[t, h], for c < min(lengths[t], columns) only.

    run(query, weights fp32 [T, H], cache u8 [pages, stride], page_table i32 [R, n], rows i32 [T], lengths i32 [T],
    out fp32 [T, columns]). Entry c of token t is row c % 64 of page page_table[rows[t], c // 64]; a page of -1 gives
    -inf and nothing of the cache is read for it. Entries of `out` from lengths[t] on are not written. The rest of the
    sum is fp32: products of codes, then (FP4) the scales of each block of 32, relu, weights, heads, the key's scale
    (FP8). A token of length 0 reads nothing, whatever its row. Tokens of one request must be neighbours for a chunked
    plan to share their keys; the result does not depend on it. Allocates, synchronises and reads nothing of the device.
    """

    tokens: int
    heads: int
    columns: int
    layout: PagedLayout
    config: Config

    def run(
        self,
        query: Query,
        weights: torch.Tensor,
        cache: torch.Tensor,
        page_table: torch.Tensor,
        rows: torch.Tensor,
        lengths: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        from wellhead.ops.indexer import kernels

        tokens, c = rows.shape[0], self.config
        if tokens > self.tokens:
            raise ValueError(f"rows has {tokens} tokens; the plan was made for at most {self.tokens}")
        fp8 = self.layout is index_key.FP8
        width, dtype = (index_key.DIM, torch.float8_e4m3fn) if fp8 else (index_key.DIM // 2, torch.uint8)
        expect("query.codes", query.codes, (tokens, self.heads, width), dtype)
        if fp8 != (query.scale is None):
            raise ValueError(f"query.scale is {'given' if fp8 else 'None'}; FP4 queries have scales, FP8 ones do not")
        if query.scale is not None:
            expect("query.scale", query.scale, (tokens, self.heads, 4), torch.uint8)
        expect("weights", weights, (tokens, self.heads), torch.float32)
        expect("rows", rows, (tokens,), torch.int32)
        expect("lengths", lengths, (tokens,), torch.int32)
        expect("page_table", page_table, tuple(page_table.shape[-2:]), torch.int32)
        if page_table.shape[1] * PAGE < self.columns:
            raise ValueError(f"page_table has {page_table.shape[1]} pages of {PAGE}; {self.columns} columns need more")
        expect("out", out, (tokens, self.columns), torch.float32)
        pages = key_pages(self.layout, cache)
        if not tokens:
            return
        common = (
            weights, pages, page_table, rows, lengths, out,
            tokens, self.heads, page_table.shape[1], self.columns, cache.stride(0),
        )  # fmt: skip
        options = {**constants(c), "num_warps": c.num_warps, "num_stages": c.num_stages, **launch()}
        if fp8:
            kernels.logits_fp8_kernel[(tokens, c.programs)](query.codes.view(torch.uint8), *common, **options)
        else:
            kernels.logits_fp4_kernel[(tokens, c.programs)](query.codes, query.scale, *common, **options)


def constants(config: Config) -> dict[str, int]:
    return {"G": config.group, "BH": config.heads}


def supports(heads: int, columns: int) -> str | None:
    """None, or why these sizes cannot run."""
    if not 1 <= heads <= MOST_HEADS:
        return f"heads={heads}: 1 to {MOST_HEADS}"
    if columns < PAGE or columns % PAGE or columns >= 2**31:
        return f"columns={columns}: a multiple of {PAGE} below 2^31"
    return None


def plan(tokens: int, heads: int, columns: int, layout: PagedLayout, *, chunked: bool = False) -> IndexLogits:
    """Plan for at most `tokens` tokens and `columns` entries of one of index_key's layouts; needs no workspace.

    `chunked` says that requests bring several tokens each (prefill): up to four of 64 heads (two with FP4 keys) then
    share each key tile.
    """
    why = supports(heads, columns)
    if why is not None:
        raise ValueError(f"index logits cannot be planned: {why}")
    config = choose_config(tokens, heads, columns, name_of(layout), chunked=chunked)
    return IndexLogits(tokens, heads, columns, layout, config)


def name_of(layout: PagedLayout) -> str:
    """The layout's in LAYOUTS; ValueError for one of something else than index keys."""
    for name, known in LAYOUTS.items():
        if layout == known:
            return name
    raise ValueError(f"layout={layout.name!r}: expected {' or '.join(repr(known.name) for known in LAYOUTS.values())}")


def round_query(
    q: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor, tail: torch.Tensor, *, layout: PagedLayout,
    rotation: tuple[torch.Tensor, torch.Tensor], factor: float, scaled: torch.Tensor,
) -> None:  # fmt: skip
    """Round q bf16 [T, H, 128] for `IndexLogits`, and scale weights fp32 or bf16 [T, H] by factor.

    rotation (positions int64 [T], freqs fp32 [32]) rotates the last 64 dims first, as `ops.rope` does, rounded to bf16;
    the Hadamard matrix turns all 128 (`reference.rotate`). FP8: codes E4M3 [T, H, 128] and tail fp32 [T, H], the
    weights times each head's scale; scaled is not written. FP4: codes u8 [T, H, 64], tail u8 [T, H, 4], the scales, and
    scaled fp32 [T, H], the weights.
    """
    from wellhead.ops.indexer import rounding

    tokens, heads = q.shape[:2]
    expect("q", q, (tokens, heads, index_key.DIM), torch.bfloat16)
    expect("weights", weights, (tokens, heads), torch.float32, torch.bfloat16)
    if name_of(layout) == "fp8":
        expect("codes", codes, (tokens, heads, index_key.DIM), torch.float8_e4m3fn)
        expect("tail", tail, (tokens, heads), torch.float32)
    else:
        expect("codes", codes, (tokens, heads, index_key.DIM // 2), torch.uint8)
        expect("tail", tail, (tokens, heads, 4), torch.uint8)
    expect("scaled", scaled, (tokens, heads), torch.float32)
    positions, freqs = rotation
    expect("positions", positions, (tokens,), torch.int64)
    expect("freqs", freqs, (32,), torch.float32)
    count = tokens * heads
    if count:
        rounding.round_query_kernel[(-(-count // VECTORS),)](
            q, positions, freqs, weights, codes.view(torch.uint8), tail, scaled, count, heads, factor,
            **rounding_constants(layout), ONE=heads % VECTORS == 0, num_warps=QUERY_WARPS, num_stages=2,
            **launch(),
        )  # fmt: skip


def rounding_constants(layout: PagedLayout) -> dict[str, int | bool]:
    return {"BN": VECTORS, "FP4": layout is index_key.FP4}


def key_pages(layout: PagedLayout, cache: torch.Tensor) -> torch.Tensor:
    """A cache's bytes, after checking that its pages hold 64 keys of `layout`."""
    return byte_pages("cache", cache, layout.page_stride(PAGE), f"{layout.name}, {PAGE} keys")
