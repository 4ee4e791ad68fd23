"""The ops as functions over an engine's tensors: plans are made behind them, layouts are those of the caches.

Caches are the views that FlashMLA and DeepGEMM take, [pages, records, 1, bytes] over pages of any stride. Results are
new tensors unless an argument says where they go. Errors of the ops propagate: they name what does not fit.
"""

from __future__ import annotations

from typing import Any

import torch

from wellhead.formats import index_key, kv_record, ue8m0
from wellhead.formats.paged import PagedLayout
from wellhead.integrations.plans import functions, plan, up
from wellhead.ops.hyper_connection.api import Site
from wellhead.ops.indexer.api import Query
from wellhead.ops.linear.large_configs import SMALL_TOKENS
from wellhead.ops.moe.api import Mxfp4Experts
from wellhead.ops.moe.packed import PackedWeights
from wellhead.ops.sparse_mla.api import Pool

NONE = 16  # columns of an empty list of slots


def pages_of(view: torch.Tensor, layout: PagedLayout) -> torch.Tensor:
    """[pages, stride] bytes, padding included, of a view [pages, records, 1, record_bytes]."""
    record_bytes = layout.record_bytes
    if view.dim() != 4 or view.shape[2:] != (1, record_bytes) or view.element_size() != 1:
        raise NotImplementedError(
            f"a cache of {view.dtype} {tuple(view.shape)}; expected one byte an element, "
            f"[pages, records, 1, {record_bytes}]"
        )
    stride = view.stride(0) if view.shape[0] > 1 else layout.page_stride(view.shape[1])  # one page: torch drops it
    return view.view(torch.uint8).as_strided((view.shape[0], stride), (stride, 1))


def attend(
    q: torch.Tensor, window: torch.Tensor, slots: torch.Tensor, length: torch.Tensor | None, sink: torch.Tensor,
    scale: float, extra: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Sparse MLA over packed records: q bf16 [T, H, 512], slots i32 or i64 [T, K], length i32 [T] or None (all K),
    sink fp32 [H] -> bf16 [T, H, 512]. extra: the same (cache view, slots, length) of the selected records.
    """
    (tokens, heads, _), device = q.shape, q.device

    def pool(view: torch.Tensor, slots: torch.Tensor, length: torch.Tensor | None) -> Pool:
        if length is None:
            length = torch.full((tokens,), slots.shape[-1], dtype=torch.int32, device=device)
        cache = pages_of(view, kv_record.LAYOUT)
        return Pool(cache, view.shape[1], slots.contiguous(), length.to(torch.int32).contiguous())

    near = pool(window, slots, length)
    far = _empty(near, tokens) if extra is None else pool(*extra)
    most = near.slots.shape[1] + (0 if extra is None else far.slots.shape[1])
    op = functions("sparse_mla", {"heads": heads})
    attention = plan(
        ("sparse_mla", up(tokens), heads, up(most), scale, device),
        lambda: op.plan(up(tokens), heads, up(most), scale, device=device),
    )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    attention.run(q.contiguous(), near, far, sink.contiguous(), out)
    return out


def _empty(pool: Pool, tokens: int) -> Pool:
    """A pool that gives none of its records to any token."""
    device = pool.cache.device
    slots, length = plan(
        ("no slots", up(tokens), device),
        lambda: (
            torch.full((up(tokens), NONE), -1, dtype=torch.int32, device=device),
            torch.zeros(up(tokens), dtype=torch.int32, device=device),
        ),
    )
    return Pool(pool.cache, pool.page_size, slots[:tokens], length[:tokens])


def index_logits(
    codes: torch.Tensor, weights: torch.Tensor, cache: torch.Tensor, lengths: torch.Tensor, page_table: torch.Tensor,
    columns: int,
) -> torch.Tensor:  # fmt: skip
    """Index logits of FP8 queries: codes E4M3 [T, H, 128], weights fp32 [T, H], cache view [pages, 64, 1, 132], lengths
    i32 [T], page_table i32 [T, n] -> fp32 [T, columns]; entries from lengths[t] on hold anything.
    """
    (tokens, heads, _), device, page = codes.shape, codes.device, index_key.PAGE_SIZE
    computed = min(-(-columns // page), page_table.shape[1]) * page
    op = functions("indexer", {"heads": heads, "columns": computed})
    logits = plan(
        ("indexer", up(tokens), heads, computed, device), lambda: op.plan(up(tokens), heads, computed, index_key.FP8)
    )
    rows = plan(("rows", up(tokens), device), lambda: torch.arange(up(tokens), dtype=torch.int32, device=device))
    out = torch.empty(tokens, computed, dtype=torch.float32, device=device)
    logits.run(
        Query(codes.contiguous()), weights.float().contiguous(), pages_of(cache, index_key.FP8),
        page_table.to(torch.int32).contiguous(), rows[:tokens], lengths.to(torch.int32).contiguous(), out,
    )  # fmt: skip
    return out[:, :columns] if computed >= columns else torch.nn.functional.pad(out, (0, columns - computed))


def choose_slots(
    logits: torch.Tensor, lengths: torch.Tensor, page_table: torch.Tensor, out: torch.Tensor, page: int,
    entries: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """The best of each row's first lengths[t] logits fp32 [T, columns]: slots to out i32 [T, k], ascending by entry, -1
    behind them; the entries themselves to `entries`, if given.
    """
    (rows, columns), k, device = logits.shape, out.shape[1], logits.device
    lengths, page_table = lengths.to(torch.int32).contiguous(), page_table.to(torch.int32)
    op = functions("topk", {"rows": up(rows), "columns": columns, "k": k})

    def best(unit: int) -> Any:
        key = ("topk", up(rows), columns, k, unit, device)
        return plan(key, lambda: op.plan(up(rows), columns, k, page=unit, device=device))

    best(page).run(logits, lengths, page_table, out)
    if entries is not None:
        best(0).run(logits, lengths, None, entries)


def linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Block-FP8 product: x bf16 [T, K], weight E4M3 [N, K], UE8M0 bytes u8 [ceil(N/128), K/128] -> bf16 [T, N]."""
    (tokens, k), n, device = x.shape, weight.shape[0], x.device
    product = plan(("linear", n, k), lambda: functions("linear", {"n": n, "k": k}).plan(n, k))
    out = torch.empty(tokens, n, dtype=torch.bfloat16, device=device)
    if tokens > SMALL_TOKENS:
        codes, _, rows_scale = rounded(x, plain=True, halved=False)
        product.run(codes, rows_scale, weight, scale, out)
    else:
        product.run(x.contiguous(), None, weight, scale, out)
    return out


def rounded(
    x: torch.Tensor, *, plain: bool, halved: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """(codes, the codes in halves order, scale) of bf16 rows [T, d] in E4M3; what was not asked for is None."""
    d = x.shape[1]
    rounding = plan(("norm_quant", d), lambda: functions("norm_quant", {"d": d}).plan(d, 0.0))
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device) if plain else None
    halves = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device) if halved else None
    scale = torch.empty(x.shape[0], d // 128, dtype=torch.uint8, device=x.device)
    rounding.run(x, None, codes, scale, None, halves)
    return codes, halves, scale


def experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, packed: PackedWeights, limit: float
) -> torch.Tensor:
    """MXFP4 experts: x bf16 [T, d], ids [T, K] of this rank's experts (-1: none), weights [T, K] -> bf16 [T, d]."""
    (tokens, d), top_k, device = x.shape, ids.shape[1], x.device
    count, m = packed.w13.shape[0], packed.w13.shape[1] // 2
    most = up(tokens)
    sizes = {"tokens": most, "d": d, "m": m, "experts": count, "top_k": top_k}
    op = functions("moe", sizes)
    layer = plan(
        ("moe", *sizes.values(), limit, device),
        lambda: op.plan(most, d, m, count, top_k, limit, op.product, device=device),
    )
    group = layer.config.group
    routing = functions("routing", {"tokens": 1, "width": d, "experts": count, "top_k": top_k})
    lists = plan(
        ("lists", most, top_k, count, group, device),
        lambda: routing.plan_lists(most, top_k, count, group, device=device),
    )
    shared = plan(("zeros", most, d, device), lambda: torch.zeros(most, d, dtype=torch.bfloat16, device=device))
    ids, weights = ids.to(torch.int32).contiguous(), weights.float().contiguous()
    out = torch.empty(tokens, d, dtype=torch.bfloat16, device=device)
    rows: torch.Tensor | None = x.contiguous()
    scale: torch.Tensor | None = None
    if op.product.rounded:
        halved = isinstance(layer, Mxfp4Experts)
        codes, halves, scale = rounded(x, plain=not halved, halved=halved)
        rows = halves if halved else codes
    lists.run(ids)
    layer.run(rows, scale, ids, weights, lists, packed, shared[:tokens]).add_up(out)
    return out


Mixed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def hyper_pre(
    streams: torch.Tensor, site: Site, norm_eps: float, hc_eps: float, iterations: int,
    update: Mixed | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(streams, input bf16 [T, d], post fp32 [T, 4], comb fp32 [T, 4, 4]) of streams bf16 [T, 4, d] at a site; `update`
    (y bf16 [T, d], post, comb) is written into new streams first.
    """
    (tokens, n, d), device = streams.shape, streams.device
    op = functions("hyper_connection", {"tokens": up(tokens), "n": n, "d": d})
    made = plan(
        ("hyper_connection", up(tokens), n, d, norm_eps, hc_eps, iterations, device),
        lambda: op.plan(up(tokens), d, n, norm_eps=norm_eps, hc_eps=hc_eps, iterations=iterations, device=device),
    )
    out = torch.empty(tokens, d, dtype=streams.dtype, device=device)
    post = torch.empty(tokens, n, dtype=torch.float32, device=device)
    comb = torch.empty(tokens, n, n, dtype=torch.float32, device=device)
    streams = streams.contiguous()
    if update is None:
        op.pre(made, streams, site, out, post, comb)
        return streams, out, post, comb
    y, before, mixing = (part.contiguous() for part in update)
    mixed = torch.empty_like(streams)
    op.post_pre(made, y, streams, before, mixing, site, mixed, out, post, comb)
    return mixed, out, post, comb


def hyper_post(y: torch.Tensor, streams: torch.Tensor, post: torch.Tensor, comb: torch.Tensor) -> torch.Tensor:
    """New streams bf16 [T, 4, d] of y bf16 [T, d], post fp32 [T, 4], comb fp32 [T, 4, 4]."""
    tokens, n, d = streams.shape
    op = functions("hyper_connection", {"tokens": up(tokens), "n": n, "d": d})
    out = torch.empty_like(streams, memory_format=torch.contiguous_format)
    op.post(y.contiguous(), streams.contiguous(), post.contiguous(), comb.contiguous(), out)
    return out


def scale_bytes(scale: torch.Tensor) -> torch.Tensor:
    """UE8M0 bytes of scales that are powers of two, whatever holds them; ValueError shows one that is not."""
    if scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return ue8m0.as_bytes(scale).contiguous()
    found = ue8m0.exponent_ceil(scale)
    wrong = ue8m0.decode(found) != scale.float()
    if bool(wrong.any()):
        raise ValueError(
            f"a weight scale is {float(scale[wrong][0])}; expected powers of two (UE8M0), as the published checkpoints "
            "have them"
        )
    return found
