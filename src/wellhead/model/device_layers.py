"""A block's two sub-layers in kernels: what `layers_attention` and `layers_moe` compute, launch by launch.

Every function reads and writes the buffers of a `Workspace` for the first T tokens and returns the sub-layer's output,
a rank's partial sum where the model is split.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from wellhead.model.choices import INDEX_ROWS
from wellhead.model.device_step import DeviceStep
from wellhead.model.device_weights import (
    AttentionWeights,
    CompressorWeights,
    HyperWeights,
    IndexerWeights,
    MoeWeights,
)
from wellhead.model.device_workspace import Workspace
from wellhead.model.state import LayerState, records_per_page
from wellhead.ops.addends import Addends
from wellhead.ops.addresses.reference import Entries
from wellhead.ops.hyper_connection.api import Site
from wellhead.ops.indexer.api import Query
from wellhead.ops.output_projection.configs import FEW_TOKENS
from wellhead.ops.sparse_mla.api import Pool


def site(weights: HyperWeights) -> Site:
    """The parameters of a hyper-connection as its op takes them."""
    return Site(weights.fn, weights.base, weights.scale, weights.norm)


def attention(
    weights: AttentionWeights, ratio: int, u: torch.Tensor, ws: Workspace, step: DeviceStep, state: LayerState
) -> torch.Tensor:
    """u bf16 [T, d], normed, and `ws.rounded` -> bf16 [T, d]; writes the records of this step before any is read."""
    t, positions, freqs = step.tokens, step.inputs.positions, step.freqs[ratio]
    q_rank = weights.q_norm.shape[0]
    codes, scale, latent_kv, q = ws.codes[:t], ws.scale[:t], ws.latent_kv[:t], ws.q[:t]
    latent, latent_scale = ws.latent[:t], ws.latent_scale[:t]
    selected = Pool(state.window, records_per_page(0), ws.no_slots[:t], ws.nothing[:t])
    if weights.compressor is not None:
        with ws.keys():
            _compress(weights, ratio, u, ws, step, state)
    ws.wq_a_kv.run(codes, scale, weights.wq_a_kv.weight, weights.wq_a_kv.scale, latent_kv)
    ws.norm_q.run(latent_kv[:, :q_rank], weights.q_norm, latent, latent_scale)
    # an indexer's launches wait for each other longer than the queries stream, so those are the branch then
    with ws.queries() if weights.indexer is not None else nullcontext():
        ws.wq_b.run(latent, latent_scale, weights.wq_b.weight, weights.wq_b.scale, q.view(t, -1))
        kv = latent_kv[:, q_rank:]
        ws.store.run(q, kv, weights.kv_norm, state.window, step.write_slots, positions, freqs, q_out=q)
    if weights.indexer is not None:
        _index_query(weights.indexer, latent, latent_scale, ws, step)
    if weights.compressor is not None:
        selected = _selected(weights, ratio, ws, step, state)
    for branch in (ws.queries, ws.keys, ws.records, ws.weighing):
        branch.join()

    o, z, z_codes, z_scale = ws.o[:t], ws.z[:t], ws.z_codes[:t], ws.z_scale[:t]
    window = Pool(state.window, records_per_page(0), step.window_slots, step.window_length)
    attend = ws.attend[ratio]
    attend.run(q, window, selected, weights.sink, o, *((positions, freqs) if attend.turns else ()))
    if not attend.turns:
        ws.turn_back.run(o, positions, freqs, o)
    projected = (o, weights.wo_a.weight, weights.wo_a.scale)
    if t <= FEW_TOKENS:
        ws.projection.run(*projected, z)
        ws.round_z.run(z, None, z_codes, z_scale)
    else:
        ws.projection.run(*projected, z_codes, z_scale)
    y = ws.y[:t]
    ws.wo_b.run(z_codes, z_scale, weights.wo_b.weight, weights.wo_b.scale, y)
    return y


def first_of_attention(weights: AttentionWeights) -> list[torch.Tensor]:
    """What the attention input meets first, in that order."""
    side = [] if weights.side is None else [weights.side]
    return [weights.wq_a_kv.weight, *side, weights.wq_b.weight]


def first_of_experts(weights: MoeWeights) -> list[torch.Tensor]:
    """What the experts' input meets before it is known which of them are chosen."""
    return [weights.gate, weights.shared_w13.weight, weights.shared_w2.weight]


def _compress(
    weights: AttentionWeights, ratio: int, u: torch.Tensor, ws: Workspace, step: DeviceStep, state: LayerState
) -> None:
    """The rings' new rows, and the records and index keys of blocks that end in this step."""
    assert weights.compressor is not None and weights.side is not None
    assert state.compressor is not None and state.compressed is not None
    t = step.tokens
    ws.project_side(u, ratio, weights.side)
    ws.keys.mark()
    ws.weighing.join()  # here, where nobody waits yet: a join holds up the launch behind it
    projected, out = ws.projected[ratio][:t], state.compressed
    with ws.records() if weights.indexer is not None else nullcontext():
        _advance(ws.compress[ratio], projected, weights.compressor, step, ratio, state.compressor, out)
    if weights.indexer is not None:
        assert state.index_keys is not None and state.index_compressor is not None
        given = (ws.index_projected[:t], weights.indexer.compressor, step, ratio, state.index_compressor)
        _advance(ws.compress_index, *given, state.index_keys)


def _advance(
    plan: Any, projected: torch.Tensor, weights: CompressorWeights, step: DeviceStep, ratio: int, rings: torch.Tensor,
    out: torch.Tensor,
) -> None:  # fmt: skip
    """Finished blocks' entries to `out` (records or index keys) and the rings' new rows."""
    inputs, places = step.inputs, step.of_ratio[ratio]
    tail = (places.cos, places.sin, places.entry_slots, out)
    given = (projected, weights.ape, inputs.positions, inputs.state_slots)
    if inputs.firsts is not None and inputs.ends is not None:
        plan.run(*given, inputs.firsts, rings, weights.norm, inputs.ends[ratio], *tail)
    else:
        plan.run(*given, rings, weights.norm, *tail)


def _index_query(
    weights: IndexerWeights, latent: torch.Tensor, latent_scale: torch.Tensor, ws: Workspace, step: DeviceStep
) -> None:
    """The index queries, rotated and rounded; their weights come from `_compress`."""
    t = step.tokens
    q = ws.index_q[:t]
    ws.index_wq_b.run(latent, latent_scale, weights.wq_b.weight, weights.wq_b.scale, q.view(t, -1))
    ws.keys.join_marked()
    ws.indexing.round_query(
        q, ws.index_weights[:t], ws.index_codes[:t], ws.index_tail[:t], layout=ws.layout,
        rotation=(step.inputs.positions, step.freqs[4]), factor=ws.index_scale, scaled=ws.index_scaled[:t],
    )  # fmt: skip


def _selected(weights: AttentionWeights, ratio: int, ws: Workspace, step: DeviceStep, state: LayerState) -> Pool:
    """The compressed records that each token attends: those that the indexer chooses, or all."""
    assert state.compressed is not None
    places = step.of_ratio[ratio]
    slots = places.slots if weights.indexer is None else _select(ws, step, places, state)
    return Pool(state.compressed, records_per_page(ratio), slots, places.chosen)


def _select(ws: Workspace, step: DeviceStep, places: Entries, state: LayerState) -> torch.Tensor:
    """int64 [T, index_topk] slots of the chosen entries, ascending, -1 behind the last."""
    assert state.index_keys is not None
    t, inputs = step.tokens, step.inputs
    codes, tail, scaled = ws.index_codes[:t], ws.index_tail[:t], ws.index_scaled[:t]
    folded = ws.layout.name.startswith("FP8")
    selected, rows = ws.selected[:t], min(INDEX_ROWS, ws.tokens)
    ws.keys.join()
    for low in range(0, t, rows):
        part = slice(low, min(t, low + rows))
        logits = ws.logits_of_index[: part.stop - part.start]
        query = Query(codes[part], None if folded else tail[part])
        visible = places.visible[part]
        ws.index_logits.run(
            query, tail[part] if folded else scaled[part], state.index_keys, inputs.page_table, inputs.rows[part],
            visible, logits,
        )  # fmt: skip
        ws.topk.run(logits, visible, step.tables[part], selected[part])
    return selected


def experts(weights: MoeWeights, u: torch.Tensor, ws: Workspace, step: DeviceStep) -> Addends:
    """u bf16 [T, d], normed, and `ws.rounded` -> this rank's chosen experts and part of the shared one."""
    t = step.tokens
    codes, scale = ws.codes[:t], ws.scale[:t]
    ids, chosen_weights, shared = ws.ids[:t], ws.weights[:t], ws.shared[:t]
    owners = step.inputs.state_slots  # padding reads no expert
    with ws.routing():
        if weights.table is not None:
            chosen = (step.inputs.token_ids, ids, chosen_weights, owners, ws.lists)
            ws.router.choose_by_token(u, weights.gate, weights.table, *chosen)
        else:
            assert weights.bias is not None
            ws.router.choose(u, weights.gate, weights.bias, ids, chosen_weights, owners, ws.lists)
    gate_up, hidden, hidden_scale = ws.shared_gate_up[:t], ws.shared_codes[:t], ws.shared_scale[:t]
    ws.shared_w13.run(codes, scale, weights.shared_w13.weight, weights.shared_w13.scale, gate_up)
    ws.shared_middle.run(gate_up, hidden, hidden_scale)
    ws.shared_w2.run(hidden, hidden_scale, weights.shared_w2.weight, weights.shared_w2.scale, shared)
    ws.routing.join()
    ws.weighing.join()
    addends: Addends = ws.experts.run(*ws.expert_rows(u), ids, chosen_weights, ws.lists, weights.experts, shared)
    return addends
