"""On a card: decode steps captured for several batch sizes give the tokens of steps launched one by one."""

from __future__ import annotations

import gc

import pytest
import torch

from wellhead.model.batch import Batch, Chunk, longest
from wellhead.model.checkpoint import open_checkpoint
from wellhead.model.device_graphs import DecodeSteps
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_step import StepInputs
from wellhead.model.locate import resolve_model
from wellhead.model.numerics import Numerics
from wellhead.model.split import Split
from wellhead.model.state import pages_for
from wellhead.model.stream import load_device_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

CONTEXT, REQUESTS, STEPS = 1024, 5, 12


def test_captured_steps_give_the_tokens_of_eager_ones() -> None:
    checkpoint = open_checkpoint(resolve_model())
    weights, _ = load_device_weights(checkpoint, Split(), "cuda")
    model = DeviceModel(weights, checkpoint.config, Numerics.named("checkpoint"))
    lengths = [20 + 90 * request for request in range(REQUESTS)]
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 3000, (length,), generator=generator).tolist() for length in lengths]
    answers = [answer(model, prompts, captured) for captured in (False, True)]
    assert answers[0] == answers[1]
    assert len({tuple(tokens) for tokens in answers[0]}) == REQUESTS


def answer(model: DeviceModel, prompts: list[list[int]], captured: bool) -> list[list[int]]:
    """Greedy tokens of all prompts together, in batches padded to the ladder."""
    width = pages_for(CONTEXT)
    state = model.allocate(width * len(prompts), len(prompts))
    pages = [list(range(request * width, (request + 1) * width)) for request in range(len(prompts))]
    tokens = [list(prompt) for prompt in prompts]
    prefill = model.workspace(512, CONTEXT, chunked=True)
    for request, prompt in enumerate(prompts):
        batch = Batch.build([Chunk(prompt, 0, pages[request], request)])
        streams = model.forward(StepInputs.of(batch, "cuda", chunked=True), state, prefill)
        tokens[request].append(int(model.logits(streams[-1:], prefill).argmax()))
    ladder = DecodeSteps(model, state, CONTEXT, sizes=(1, 4, 8), captured=captured)
    gc.collect()
    rubbish = torch.randint(0, 256, (1 << 28,), dtype=torch.uint8, device="cuda")  # over whatever nobody kept
    torch.cuda.synchronize()
    del rubbish
    for _ in range(STEPS):
        chunks = [Chunk(t[-1:], len(t) - 1, pages[request], request) for request, t in enumerate(tokens)]
        step = ladder.of(len(chunks), longest(chunks))
        step.load(Batch.build(chunks, pad_to=step.size, table_width=width))
        step.run()
        for request, token in enumerate(step.best[: len(chunks)].tolist()):
            tokens[request].append(token)
    kept = step.logits.clone()
    for _ in range(50):  # a branch that nobody waits for would differ some day
        step.run()
        assert torch.equal(step.logits, kept)
    return [t[len(prompt) :] for t, prompt in zip(tokens, prompts, strict=True)]
