"""A block's two sub-layers in kernels: what `layers_attention` and `layers_moe` compute, launch by launch.

Every function reads and writes the buffers of a `Workspace` for the first T tokens and returns the sub-layer's output,
a rank's partial sum where the model is split.
"""

from __future__ import annotations

import torch

from wellhead.model.device_choice import INDEX_ROWS
from wellhead.model.device_step import Compressed, DeviceStep
from wellhead.model.device_weights import (
    AttentionWeights,
    CompressorWeights,
    HyperWeights,
    IndexerWeights,
    MoeWeights,
)
from wellhead.model.device_workspace import FEW, Workspace
from wellhead.model.state import LayerState, records_per_page
from wellhead.ops.hyper_connection.api import Site
from wellhead.ops.indexer.api import Query
from wellhead.ops.moe.api import PackedWeights
from wellhead.ops.sparse_mla.api import Pool


def site(weights: HyperWeights) -> Site:
    """The parameters of a hyper-connection as its op takes them."""
    return Site(weights.fn, weights.base, weights.scale, weights.norm)


def attention(
    weights: AttentionWeights, ratio: int, u: torch.Tensor, ws: Workspace, step: DeviceStep, state: LayerState
) -> torch.Tensor:
    """u bf16 [T, d], normed -> bf16 [T, d]; writes the records of this step before any is read."""
    t, positions, freqs = step.tokens, step.inputs.positions, step.freqs(ratio)
    q_rank = weights.q_norm.shape[0]
    codes, scale, latent_kv, q = ws.codes[:t], ws.scale[:t], ws.latent_kv[:t], ws.q[:t]
    latent, latent_scale = ws.latent[:t], ws.latent_scale[:t]
    ws.round_d.run(u, None, codes, scale)
    ws.wq_a_kv.run(codes, scale, weights.wq_a_kv.weight, weights.wq_a_kv.scale, latent_kv)
    ws.norm_q.run(latent_kv[:, :q_rank], weights.q_norm, latent, latent_scale)
    ws.wq_b.run(latent, latent_scale, weights.wq_b.weight, weights.wq_b.scale, q.view(t, -1))
    kv = latent_kv[:, q_rank:]
    ws.store.run(q, kv, weights.kv_norm, state.window, step.write_slots, positions, freqs, q_out=q)

    window = Pool(state.window, records_per_page(0), step.window_slots, step.window_length)
    selected = Pool(state.window, records_per_page(0), ws.no_slots[:t], ws.nothing[:t])
    if weights.compressor is not None:
        assert state.compressed is not None and state.compressor is not None
        places, page = step.of_ratio[ratio], records_per_page(ratio)
        _compress(ws, ratio, weights.compressor, u, step, places, state.compressor, state.compressed)
        if weights.indexer is not None:
            slots = _select(weights.indexer, u, latent, latent_scale, ws, step, places, state)
            length = places.visible.clamp_max(slots.shape[1])
        else:
            assert places.slots is not None
            slots, length = places.slots, places.visible
        selected = Pool(state.compressed, page, slots, length)

    o, z = ws.o[:t], ws.z[:t]
    ws.attend[ratio].run(q, window, selected, weights.sink, o)
    if t <= FEW:
        ws.projection.run(o, positions, freqs, weights.wo_a.weight, weights.wo_a.scale, z)
        rounded, z_scale = z, None
    else:
        ws.turn_back.run(o, positions, freqs, o)
        rounded, z_scale = ws.z_codes[:t], ws.z_scale[:t]
        ws.projection.run(o, None, None, weights.wo_a.weight, weights.wo_a.scale, rounded, z_scale)
    y = ws.y[:t]
    ws.wo_b.run(rounded, z_scale, weights.wo_b.weight, weights.wo_b.scale, y)
    return y


def _compress(
    ws: Workspace, ratio: int, weights: CompressorWeights, u: torch.Tensor, step: DeviceStep, places: Compressed,
    rings: torch.Tensor, out: torch.Tensor, *, index: bool = False,
) -> None:  # fmt: skip
    """Finished blocks' entries to `out` (records, or bf16 rows of the index compressor) and the rings' new rows."""
    inputs = step.inputs
    plan = ws.compress_index if index else ws.compress[ratio]
    projected = ws.project(u, weights.kv_gate, torch.float32)
    tail = (places.cos, places.sin, places.entry_slots, out)
    if inputs.firsts is not None and inputs.ends is not None:
        plan.run(
            projected, weights.ape, inputs.positions, inputs.state_slots, inputs.firsts, rings, weights.norm,
            inputs.ends[ratio], *tail,
        )  # fmt: skip
    else:
        plan.run(projected, weights.ape, inputs.positions, inputs.state_slots, rings, weights.norm, *tail)


def _select(
    weights: IndexerWeights, u: torch.Tensor, latent: torch.Tensor, latent_scale: torch.Tensor, ws: Workspace,
    step: DeviceStep, places: Compressed, state: LayerState,
) -> torch.Tensor:  # fmt: skip
    """int64 [T, index_topk] slots of the chosen entries, ascending, -1 behind the last."""
    assert state.index_keys is not None and state.index_compressor is not None
    t, inputs = step.tokens, step.inputs
    keys = torch.empty(len(places.entry_slots), ws.config.index_head_dim, dtype=torch.bfloat16, device=u.device)
    _compress(ws, 4, weights.compressor, u, step, places, state.index_compressor, keys, index=True)
    ws.indexing.write_keys(state.index_keys, places.entry_slots, keys, layout=ws.layout, rotate=True)
    q, codes, tail = ws.index_q[:t], ws.index_codes[:t], ws.index_tail[:t]
    ws.index_wq_b.run(latent, latent_scale, weights.wq_b.weight, weights.wq_b.scale, q.view(t, -1))
    ws.index_rope.run(q, inputs.positions, step.freqs(4), q)
    weight = ws.project(u, weights.weights_proj, torch.bfloat16).float() * ws.index_scale
    ws.indexing.round_query(q, weight, codes, tail, layout=ws.layout, rotate=True)
    folded = ws.layout.name.startswith("FP8")
    selected, rows = ws.selected[:t], min(INDEX_ROWS, ws.tokens)
    for low in range(0, t, rows):
        part = slice(low, min(t, low + rows))
        logits = ws.logits_of_index[: part.stop - part.start]
        query = Query(codes[part], None if folded else tail[part])
        visible = places.visible[part]
        ws.index_logits.run(
            query, tail[part] if folded else weight[part], state.index_keys, inputs.page_table, inputs.rows[part],
            visible, logits,
        )  # fmt: skip
        ws.topk.run(logits, visible, step.tables[part], selected[part])
    return selected


def experts(weights: MoeWeights, u: torch.Tensor, ws: Workspace, step: DeviceStep) -> torch.Tensor:
    """u bf16 [T, d], normed -> bf16 [T, d]: the chosen experts of this rank and its part of the shared one."""
    t = step.tokens
    codes, scale = ws.codes[:t], ws.scale[:t]
    ids, chosen_weights, shared, y = ws.ids[:t], ws.weights[:t], ws.shared[:t], ws.y[:t]
    ws.round_experts(u)
    if weights.table is not None:
        ws.router.choose_by_token(u, weights.gate, weights.table, step.inputs.token_ids, ids, chosen_weights)
    else:
        assert weights.bias is not None
        ws.router.choose(u, weights.gate, weights.bias, ids, chosen_weights)
    ids.masked_fill_(~step.real.unsqueeze(1), -1)  # padding reads no expert
    ws.lists.run(ids)
    gate_up, hidden, hidden_scale = ws.shared_gate_up[:t], ws.shared_codes[:t], ws.shared_scale[:t]
    ws.shared_w13.run(codes, scale, weights.shared_w13.weight, weights.shared_w13.scale, gate_up)
    ws.shared_middle.run(gate_up, hidden, hidden_scale)
    ws.shared_w2.run(hidden, hidden_scale, weights.shared_w2.weight, weights.shared_w2.scale, shared)
    packed = PackedWeights(weights.experts.w13, weights.experts.s13, weights.experts.w2, weights.experts.s2)
    ws.experts.run(*ws.expert_rows(u), ids, chosen_weights, ws.lists, packed, shared, y)
    return y
