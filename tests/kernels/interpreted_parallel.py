"""What one rank of two computes in kernels, before any sum over ranks, against the reference's part of the same rank.

Run by test_interpreter.py, or natively where there is a card.
"""

from __future__ import annotations

import torch

from wellhead.model import device_layers
from wellhead.model.batch import Batch, Chunk
from wellhead.model.checkpoint import open_checkpoint
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_step import DeviceStep, StepInputs
from wellhead.model.load import load_model
from wellhead.model.locate import resolve_model
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import Group
from wellhead.model.split import Split
from wellhead.model.stream import load_device_weights
from wellhead.ops.addends import Addends
from wellhead.ops.norm_quant import api as norm_quant

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYER = 1  # it has every part: window, compressed entries, indexer


class Unsummed(Group):
    """Rank 1 of two whose sums stay its own."""

    def __init__(self) -> None:
        self.rank, self.world = 1, 2

    def reduce(self, partial: torch.Tensor, addends: Addends | None = None) -> None:
        pass

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        return part


def test_a_ranks_parts_agree_with_the_references() -> None:
    checkpoint, numerics = open_checkpoint(resolve_model()), Numerics.named("checkpoint")
    group, split = Unsummed(), Split(1, 2, "expert")  # the kernels take experts of 256 channels or more: not by width
    reference = load_model(checkpoint, numerics, split=split, group=group)
    assert isinstance(reference, DeepseekV4)
    weights, _ = load_device_weights(checkpoint, split, DEVICE)
    model = DeviceModel(weights, checkpoint.config, numerics, reduce=group.reduce, gather=group.gather)
    states = reference.allocate(2, 2), model.allocate(2, 2)
    batch = Batch.build([Chunk([100, 2000, 7], 0, [1, 0], 1, logits="all")])
    inputs, ws = StepInputs.of(batch, DEVICE, chunked=True), model.workspace(4, 512, chunked=True)
    step, expected_step = DeviceStep(inputs, ws, model._freqs), reference._step(batch)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(3, checkpoint.config.hidden_size, generator=generator).bfloat16()
    streams = torch.randn(3, checkpoint.config.hc_mult, checkpoint.config.hidden_size, generator=generator).bfloat16()
    layer, block = weights.layers[LAYER], reference._blocks[LAYER]
    ours = u.to(DEVICE)

    check("embedding", model.embed(inputs.token_ids), reference._embed(batch.token_ids))
    rounding, rounded = norm_quant.plan(u.shape[1], 1e-6), ws.rounded(3, experts=True)
    rounding.run(ours, None, rounded.codes, rounded.scale, halves=rounded.halves)  # as the hyper-connections leave it
    found = device_layers.attention(layer.attention, layer.ratio, ours, ws, step, states[1].layers[LAYER])
    check("attention", found, block.attn.forward(u, expected_step, states[0].layers[LAYER]))
    y = torch.empty_like(ours)
    device_layers.experts(layer.moe, ours, ws, step).add_up(y)
    check("experts", y, block.ffn.forward(u, batch.token_ids))
    check("logits", model.logits(streams.to(DEVICE), ws), reference.logits(streams))


def check(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape, what
    error = float((found.cpu().float() - expected.float()).norm() / expected.float().norm())
    print(f"{what}: relative error {error:.1e}")
    assert error < 0.02, what
