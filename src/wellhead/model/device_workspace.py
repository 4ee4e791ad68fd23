"""Plans of every op, and the buffers between them, for steps of up to a number of tokens; all layers share them, and
steps that run one at a time may share the buffers, those within the plans too (`part`, `by_reach`).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch

from wellhead.dispatch.spec import REFERENCE
from wellhead.formats import index_key
from wellhead.model.choices import INDEX_ROWS, Choices
from wellhead.model.config import ModelConfig
from wellhead.model.device_ahead import Ahead
from wellhead.model.device_aside import PATIENT, Aside
from wellhead.model.device_kernels import functions_of
from wellhead.model.device_layout import side_parts
from wellhead.model.numerics import Numerics
from wellhead.model.split import Split
from wellhead.model.state import PAGE_TOKENS, pages_for, records_per_page
from wellhead.ops.addresses.api import Wanted
from wellhead.ops.moe.api import Mxfp4Experts
from wellhead.ops.norm_quant.api import Rounded
from wellhead.ops.sampling import api as sampling
from wellhead.ops.scratch import Scratch


class Workspace:
    """Steps of at most `tokens` tokens over page tables `pages` wide; `chunked`: several tokens a request."""

    def __init__(
        self, config: ModelConfig, numerics: Numerics, split: Split, choices: Choices, tokens: int, pages: int, *,
        chunked: bool, device: torch.device | str,
    ):  # fmt: skip
        self._given = (config, numerics, split, choices, chunked, device)
        self.config = config
        # branches of a step: the compressor's rows (and index keys), records; routing; mixing weights; queries
        self.keys, self.records, self.routing, self.weighing = (Aside(torch.device(device)) for _ in range(4))
        self.queries = Aside(torch.device(device), PATIENT)
        self._of_tokens, self._of_reach = Scratch(), Scratch()
        self._index_logits = torch.empty(min(tokens, INDEX_ROWS) * pages * records_per_page(4), device=device)
        self._plan(tokens, pages)
        self._allocate()

    def part(self, tokens: int) -> Workspace:
        """For steps of up to `tokens` tokens, no more than this one's: other plans, the same buffers."""
        if tokens == self.tokens:
            return self
        other = copy(self)
        other._plan(tokens, self._pages)
        return other

    def by_reach(self, reaches: Sequence[int]) -> dict[int, Workspace]:
        """For requests of up to so many tokens, the last as many as this one is for; by pages, the same buffers."""
        found = {}
        for pages in map(pages_for, reaches):
            found[pages] = copy(self)
            if pages != self._pages:
                with self._of_reach.lend():
                    found[pages]._plan_reach(pages)
        return found

    def _plan(self, tokens: int, pages: int) -> None:
        with self._of_tokens.lend():
            self._plan_tokens(tokens)
        with self._of_reach.lend():
            self._plan_reach(pages)

    def _plan_tokens(self, tokens: int) -> None:
        """The plans that do not depend on how long requests are."""
        config, numerics, split, choices, chunked, device = self._given
        self.tokens, self.ahead = tokens, Ahead(torch.device(device), tokens)

        def use(op: str) -> Any:
            return functions_of(op, choices.of(op, tokens))

        linear, bf16_linear, norm_quant, rope = map(use, ("linear", "bf16_linear", "norm_quant", "rope"))
        kv_store, compressor, indexer, hyper_connection = map(
            use, ("kv_store", "compressor", "indexer", "hyper_connection")
        )
        sparse_mla, output_projection, routing, moe = map(use, ("sparse_mla", "output_projection", "routing", "moe"))
        self.mixing, self.indexing = hyper_connection, indexer
        world, eps, d, limit = split.world, config.rms_norm_eps, config.hidden_size, config.swiglu_limit
        heads, groups = config.num_attention_heads // world, config.o_groups // world
        q_rank, dim, packed = config.q_lora_rank, config.head_dim, numerics.index_keys == "fp4"
        self.layout = index_key.FP4 if packed else index_key.FP8

        self.hyper = hyper_connection.plan(
            tokens, d, config.hc_mult, norm_eps=eps, hc_eps=config.hc_eps, iterations=config.hc_sinkhorn_iters,
            device=device,
        )  # fmt: skip
        self.norm_q = norm_quant.plan(q_rank, eps)
        self.wq_a_kv, self.wq_b = linear.plan(q_rank + dim, d), linear.plan(heads * dim, q_rank)
        self.store = kv_store.plan(heads, records_per_page(0), eps)
        self.projection = output_projection.plan(heads, groups, config.o_lora_rank)
        self.turn_back = rope.plan(heads, dim, inverse=True)
        width = groups * config.o_lora_rank
        self.round_z, self.wo_b = norm_quant.plan(width, eps), linear.plan(d, width)
        records = {0: 0, 4: config.index_topk}
        self.attend = {
            ratio: sparse_mla.plan(tokens, heads, config.sliding_window + records[ratio], dim**-0.5, device=device)
            for ratio in sorted(set(config.compress_ratios) - {128})
        }
        plan_compressor = compressor.plan_prefill if chunked else compressor.plan_decode
        self.compress = {
            ratio: plan_compressor(ratio, dim, eps, page_size=records_per_page(ratio)) for ratio in (4, 128)
        }
        self.compress_index = plan_compressor(4, config.index_head_dim, eps, keys=self.layout)
        index_heads = config.index_n_heads
        self.side = {ratio: bf16_linear.plan(side_parts(config, ratio), d) for ratio in (4, 128)}
        self.index_wq_b = linear.plan(index_heads * config.index_head_dim, q_rank)
        self.index_scale = config.index_head_dim**-0.5 * index_heads**-0.5
        self.router = routing.plan(
            tokens, d, config.n_routed_experts, config.num_experts_per_tok, config.routed_scaling_factor, device=device
        )
        expert_rows, inner = split.expert_rows(config), split.expert_width(config)
        self.experts = moe.plan(
            tokens, d, inner.stop - inner.start, expert_rows.stop - expert_rows.start, config.num_experts_per_tok,
            limit, moe.product, device=device,
        )  # fmt: skip
        self._halved, self._rounded = isinstance(self.experts, Mxfp4Experts), moe.product.rounded
        self.lists = routing.plan_lists(
            tokens, config.num_experts_per_tok, expert_rows.stop - expert_rows.start, self.experts.config.group,
            first_expert=expert_rows.start, device=device,
        )  # fmt: skip
        shared = config.moe_intermediate_size * config.n_shared_experts // world
        self.shared_w13, self.shared_w2 = linear.plan(2 * shared, d), linear.plan(d, shared)
        self.shared_middle = moe.plan_shared(shared, limit)
        sampled = choices.of("sampling") != REFERENCE
        self.greedy = sampling.plan(tokens, config.vocab_size, sampled=False, device=device) if sampled else None
        self.vocabulary = bf16_linear.plan(config.vocab_size // world, d)

    def _plan_reach(self, pages: int) -> None:
        """The plans that do, and the part of the index logits that they write."""
        config, _, split, choices, chunked, device = self._given
        self._pages, tokens = pages, self.tokens
        indexer, topk, sparse_mla, addresses = (
            functions_of(op, choices.of(op, tokens)) for op in ("indexer", "topk", "sparse_mla", "addresses")
        )
        rows, columns, records = min(tokens, INDEX_ROWS), pages * records_per_page(4), pages * records_per_page(128)
        self.index_logits = indexer.plan(rows, config.index_n_heads, columns, self.layout, chunked=chunked)
        self.logits_of_index = self._index_logits[: rows * columns].view(rows, columns)
        self.topk = topk.plan(rows, columns, config.index_topk, device=device)
        if 128 in config.compress_ratios:
            heads, most = config.num_attention_heads // split.world, config.sliding_window + records
            every = sparse_mla.plan(tokens, heads, most, config.head_dim**-0.5, device=device)
            self.attend = self.attend | {128: every}
        wanted = {4: Wanted(config.index_topk, every=False), 128: Wanted(records, every=True)}
        self.addresses = addresses.plan(
            tokens, pages, config.sliding_window, PAGE_TOKENS,
            {ratio: wanted[ratio] for ratio in wanted if ratio in config.compress_ratios}, device=device,
        )  # fmt: skip

    def _allocate(self) -> None:
        """The buffers between launches."""
        config, numerics, split, _, _, device = self._given
        tokens, world, d, dim = self.tokens, split.world, config.hidden_size, config.head_dim
        heads, width = config.num_attention_heads // world, config.o_groups // world * config.o_lora_rank
        q_rank, packed = config.q_lora_rank, numerics.index_keys == "fp4"
        index_heads, index_dim = config.index_n_heads, config.index_head_dim
        sides = {ratio: side_parts(config, ratio) for ratio in (4, 128)}
        shared = config.moe_intermediate_size * config.n_shared_experts // world
        bf16, e4m3, u8 = torch.bfloat16, torch.float8_e4m3fn, torch.uint8

        def empty(*shape: int, dtype: torch.dtype = bf16) -> torch.Tensor:
            return torch.empty(tokens, *shape, dtype=dtype, device=device)

        self.streams, self.u, self.y = empty(config.hc_mult, d), empty(d), empty(d)
        self.post = empty(config.hc_mult, dtype=torch.float32)
        self.comb = empty(config.hc_mult, config.hc_mult, dtype=torch.float32)
        self.codes, self.halves, self.scale = empty(d, dtype=e4m3), empty(d, dtype=e4m3), empty(d // 128, dtype=u8)
        self.latent_kv, self.q = empty(q_rank + dim), empty(heads, dim)
        self.latent, self.latent_scale = empty(q_rank, dtype=e4m3), empty(q_rank // 128, dtype=u8)
        self.o, self.z = empty(heads, dim), empty(width)
        self.z_codes, self.z_scale = empty(width, dtype=e4m3), empty(width // 128, dtype=u8)
        self.projected = {ratio: empty(parts[0], dtype=torch.float32) for ratio, parts in sides.items()}
        self.index_projected = empty(sides[4][1], dtype=torch.float32)
        self.index_q = empty(index_heads, index_dim)
        self.index_weights, self.index_scaled = empty(index_heads), empty(index_heads, dtype=torch.float32)
        self.index_codes = empty(index_heads, 64 if packed else 128, dtype=u8 if packed else e4m3)
        self.index_tail = empty(index_heads, 4, dtype=u8) if packed else empty(index_heads, dtype=torch.float32)
        self.selected = empty(config.index_topk, dtype=torch.int64)
        self.no_slots = torch.full((tokens, 16), -1, dtype=torch.int64, device=device)
        self.no_draw = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.nothing = torch.zeros(tokens, dtype=torch.int32, device=device)
        self.window_length = torch.full((tokens,), config.sliding_window, dtype=torch.int32, device=device)
        top_k = config.num_experts_per_tok
        self.ids, self.weights = empty(top_k, dtype=torch.int32), empty(top_k, dtype=torch.float32)
        self.shared_gate_up, self.shared = empty(2 * shared), empty(d)
        self.shared_codes, self.shared_scale = empty(shared, dtype=e4m3), empty(shared // 128, dtype=u8)

    def expert_rows(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the experts' plan reads of u bf16 [T, d], which has been rounded."""
        t = len(u)
        codes = self.halves if self._halved else self.codes
        return (codes[:t], self.scale[:t]) if self._rounded else (u, None)

    def rounded(self, tokens: int, *, experts: bool) -> Rounded:
        """Where the hyper-connections leave u rounded: for the experts also in `halves`, if they read that order."""
        halves = self.halves[:tokens] if experts and self._halved else None
        return Rounded(self.codes[:tokens], self.scale[:tokens], halves)

    def project_side(self, u: torch.Tensor, ratio: int, side: torch.Tensor) -> None:
        """The bf16 products of the attention input: `projected`, with ratio 4 `index_projected` and `index_weights`."""
        t = len(u)
        out = [self.projected[ratio][:t]]
        if ratio == 4:
            out += [self.index_projected[:t], self.index_weights[:t]]
        self.side[ratio].run(u, side, *out)
