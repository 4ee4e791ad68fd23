"""The whole model in kernels against the reference model, over the embedded checkpoint: a prompt, then tokens.

Run by test_interpreter.py, or natively where there is a card.
"""

from __future__ import annotations

import torch

from wellhead.model.batch import Batch, Chunk
from wellhead.model.checkpoint import open_checkpoint
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.device_graphs import DecodeSteps
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_prompts import PromptSteps
from wellhead.model.device_workspace import Workspace
from wellhead.model.load import load_model
from wellhead.model.locate import resolve_model
from wellhead.model.numerics import Numerics
from wellhead.model.split import Split
from wellhead.model.state import pages_for
from wellhead.model.stream import load_device_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT, DECODED, CHUNK = (18, 1, 10) if DEVICE == "cpu" else (400, 20, 130)


def test_prefill_and_decode_agree_with_the_reference_model() -> None:
    checkpoint = open_checkpoint(resolve_model())
    numerics, config = Numerics.named("checkpoint"), checkpoint.config
    reference = load_model(checkpoint, numerics)
    assert isinstance(reference, DeepseekV4)
    weights, _ = load_device_weights(checkpoint, Split(), DEVICE)
    model = DeviceModel(weights, config, numerics)
    states = reference.allocate(4, 2), model.allocate(4, 2)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, config.vocab_size, (PROMPT + DECODED,), generator=generator).tolist()
    chunks = [(low, min(PROMPT, low + CHUNK)) for low in range(0, PROMPT, CHUNK)]
    chunks += [(at, at + 1) for at in range(PROMPT, PROMPT + DECODED)]
    prompts = PromptSteps(model, states[1], CHUNK, 1024, 2, captured=DEVICE == "cuda")
    decode = DecodeSteps(model, states[1], 1024, (2, 3), captured=False)
    spoilt = [*(step.workspace for step in decode.steps.values()), *prompts.by_reach.values()]
    for low, high in chunks:
        chunk = Chunk(tokens[low:high], low, [2, 0, 3, 1], 1, logits="all")
        batch = Batch.build([chunk])
        expected = reference.logits(reference.forward(batch, states[0]))
        for ws in spoilt:
            spoil(ws)
        if high - low > 1:
            found = model.logits(prompts.streams[: high - low], prompts.run([chunk]).workspace).cpu()
        else:  # beside a row of padding
            step = decode.of(1, 4)
            for table in (step.inputs.page_table, step.inputs.window_table):
                table.fill_(3)  # what a longer request left behind its own pages is not looked at
            step.load(Batch.build([Chunk(tokens[low:high], low, [2, 0, 3, 1][: pages_for(high)], 1)], pad_to=2))
            step.run()
            found = step.logits[:1].cpu()
        error = float((found - expected).norm() / expected.norm())
        same = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
        print(f"tokens {low}..{high - 1}: relative error {error:.1e}, same argmax {same:.1%}")
        assert error < 0.05, (low, high)


def spoil(ws: Workspace) -> None:
    """What another step may have left in the buffers within plans: NaN in every float, -1 in every integer."""
    blocks = [*ws._of_tokens.blocks, *ws._of_reach.blocks]
    assert len(blocks) > 5
    for block in blocks:
        block.fill_(0xFF)
