"""Plans of every op, and the buffers between them, for steps of up to a number of tokens; all layers share them."""

from __future__ import annotations

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
from wellhead.model.state import PAGE_TOKENS, records_per_page
from wellhead.ops.addresses.api import Wanted
from wellhead.ops.moe.api import Mxfp4Experts
from wellhead.ops.norm_quant.api import Rounded
from wellhead.ops.sampling import api as sampling


class Workspace:
    """Steps of at most `tokens` tokens over page tables `pages` wide; `chunked`: several tokens a request."""

    def __init__(
        self, config: ModelConfig, numerics: Numerics, split: Split, choices: Choices, tokens: int, pages: int, *,
        chunked: bool, device: torch.device | str,
    ):  # fmt: skip
        def use(op: str) -> Any:
            return functions_of(op, choices.of(op, tokens))

        linear, bf16_linear, norm_quant, rope = map(use, ("linear", "bf16_linear", "norm_quant", "rope"))
        kv_store, compressor, indexer, topk = map(use, ("kv_store", "compressor", "indexer", "topk"))
        sparse_mla, output_projection, routing, moe = map(use, ("sparse_mla", "output_projection", "routing", "moe"))
        hyper_connection, addresses = use("hyper_connection"), use("addresses")
        self.config, self.tokens = config, tokens
        # branches of a step: the compressor's rows (and index keys), records; routing; mixing weights; queries
        self.keys, self.records, self.routing, self.weighing = (Aside(torch.device(device)) for _ in range(4))
        self.queries = Aside(torch.device(device), PATIENT)
        self.ahead = Ahead(torch.device(device), tokens)
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
        scale = dim**-0.5
        records = {0: 0, 4: config.index_topk, 128: pages * records_per_page(128)}
        self.attend = {
            ratio: sparse_mla.plan(tokens, heads, config.sliding_window + records[ratio], scale, device=device)
            for ratio in sorted(set(config.compress_ratios))
        }
        plan_compressor = compressor.plan_prefill if chunked else compressor.plan_decode
        self.compress = {
            ratio: plan_compressor(ratio, dim, eps, page_size=records_per_page(ratio)) for ratio in (4, 128)
        }
        self.compress_index = plan_compressor(4, config.index_head_dim, eps, keys=self.layout)
        index_heads, index_dim = config.index_n_heads, config.index_head_dim
        sides = {ratio: side_parts(config, ratio) for ratio in (4, 128)}
        self.side = {ratio: bf16_linear.plan(parts, d) for ratio, parts in sides.items()}
        self.index_wq_b = linear.plan(index_heads * config.index_head_dim, q_rank)
        self.index_scale = config.index_head_dim**-0.5 * index_heads**-0.5
        rows = min(tokens, INDEX_ROWS)
        columns = pages * records_per_page(4)
        self.index_logits = indexer.plan(rows, index_heads, columns, self.layout, chunked=chunked)
        self.topk = topk.plan(rows, columns, config.index_topk, device=device)
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
        wanted = {4: Wanted(config.index_topk, every=False), 128: Wanted(records[128], every=True)}
        self.addresses = addresses.plan(
            tokens, pages, config.sliding_window, PAGE_TOKENS,
            {ratio: wanted[ratio] for ratio in wanted if ratio in config.compress_ratios}, device=device,
        )  # fmt: skip
        sampled = choices.of("sampling") != REFERENCE
        self.greedy = sampling.plan(tokens, config.vocab_size, sampled=False, device=device) if sampled else None
        self.no_draw = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.vocabulary = bf16_linear.plan(config.vocab_size // world, d)

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
        self.logits_of_index = torch.empty(rows, columns, dtype=torch.float32, device=device)
        self.selected = empty(config.index_topk, dtype=torch.int64)
        self.no_slots = torch.full((tokens, 16), -1, dtype=torch.int64, device=device)
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
