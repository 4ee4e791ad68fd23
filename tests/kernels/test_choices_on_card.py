"""On a card: ops in torch beside ops in kernels compute the model, and after the warm-up no step compiles anything."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from wellhead.dispatch.choose import NoImplementation
from wellhead.dispatch.spec import REFERENCE
from wellhead.engine.device_runner import DeviceRunner
from wellhead.model.batch import Batch, Chunk
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.config import ModelConfig
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.device_graphs import DecodeSteps
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_reference import REFERENCES
from wellhead.model.device_step import StepInputs
from wellhead.model.device_weights import ModelWeights
from wellhead.model.load import load_model
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import WHOLE
from wellhead.model.stream import load_device_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

SERVED = Numerics.named("checkpoint")
PROMPT = 300
HALVES = [dict.fromkeys(list(REFERENCES)[first::2], REFERENCE) for first in (0, 1)]
ALONE = [{op: REFERENCE} for op in REFERENCES]


@cache
def loaded() -> tuple[DeepseekV4, ModelWeights, ModelConfig]:
    checkpoint = open_checkpoint(resolve_model())
    reference = load_model(checkpoint, SERVED)
    assert isinstance(reference, DeepseekV4)
    return reference, load_device_weights(checkpoint, WHOLE, "cuda")[0], checkpoint.config


@pytest.mark.parametrize("impl", [*HALVES, *ALONE, {"moe": "triton-w4a16"}], ids=lambda impl: ",".join(impl))
def test_ops_in_torch_beside_ops_in_kernels(impl: dict[str, str]) -> None:
    reference, weights, config = loaded()
    model = DeviceModel(weights, config, SERVED, impl=impl)
    assert {op: name for op, name, _ in model.describe() if op in impl} == impl
    states = reference.allocate(2, 2), model.allocate(2, 2)
    tokens = torch.randint(3, config.vocab_size, (PROMPT + 1,), generator=torch.Generator().manual_seed(1)).tolist()
    prefill = model.workspace(PROMPT, 512, chunked=True)
    decode = DecodeSteps(model, states[1], 512, (2,), captured=False)
    for low, high in ((0, PROMPT), (PROMPT, PROMPT + 1)):
        batch = Batch.build([Chunk(tokens[low:high], low, [1, 0], 1, logits="all")], table_width=2)
        expected = reference.logits(reference.forward(batch, states[0]))
        if high - low > 1:
            streams = model.forward(StepInputs.of(batch, "cuda", chunked=True), states[1], prefill)
            found = model.logits(streams, prefill)
        else:
            step = decode.of(1, 2)
            step.load(Batch.build([Chunk(tokens[low:high], low, [1, 0], 1)], pad_to=2, table_width=2))
            step.run()
            found = step.logits[:1]
        error = float((found.cpu() - expected).norm() / expected.norm())
        print(f"{impl}: tokens {low}..{high - 1}: relative error {error:.1e}")
        assert error < 0.05, (low, high)


def test_native_fp4_products_are_not_made_where_there_are_none() -> None:
    _, weights, config = loaded()
    if any(impl == "triton-w4a8" for _, impl, _ in DeviceModel(weights, config, SERVED).describe()):
        pytest.skip("this card has them")
    with pytest.raises(NoImplementation, match="block_scaled_mma absent"):
        DeviceModel(weights, config, SERVED, impl={"moe": "triton-w4a8"})


def test_a_graph_of_references_is_refused() -> None:
    _, weights, config = loaded()
    model = DeviceModel(weights, config, SERVED, impl={"topk": REFERENCE})
    with pytest.raises(ValueError, match=r"--impl topk=reference: .*add --eager"):
        DeviceRunner(model, 2, 2, chunk_tokens=4)


@pytest.mark.parametrize("captured", [True, False])
def test_no_step_compiles_after_the_warm_up(captured: bool) -> None:
    """`CompiledLate` would end it: prefills of many lengths, decodes of every number of requests."""
    _, weights, config = loaded()
    runner = DeviceRunner(
        DeviceModel(weights, config, SERVED), 16, 5, chunk_tokens=300, context=1024, captured=captured
    )
    for tokens in (*range(2, 70), 127, 128, 129, 144, 255, 256, 257, 258, 272, 299, 300):
        logits = runner.compute([Chunk([5] * tokens, 2 * tokens, range(4), 1, logits="all")]).read(range(tokens))
        assert logits.shape == (tokens, config.vocab_size)
        two = [Chunk([6] * max(1, tokens // 2), 128, range(4 * slot, 4 * slot + 4), slot) for slot in (0, 1)]
        assert runner.compute(two).read(range(2)).isfinite().all()
    for requests in range(1, 6):
        pages = [range(3 * slot, 3 * slot + 3) for slot in range(requests)]
        chunks = [Chunk([7], 127 + slot, pages[slot], slot) for slot in range(requests)]
        assert len(runner.compute(chunks).at) == requests
