"""Every kernel that a step can launch, compiled before the first request.

A decode step has one of the ladder's sizes, a short prompt one of `reach.PROMPTS`, and each of them runs here or is
captured: their shapes are all there are.

A longer step over prompts has any number of tokens T up to the chunk, any number of finished blocks, of requests and of
wanted logits. What a launch compiles for depends on them in these ways only:

1. The tile, and which of two kernels. Every op's `choose_config` gives one answer for all T up to the next power of
   two, or has decided for the workspace's largest T.
2. Integer arguments, of which Triton makes a variant for 1 and one for multiples of 16. The kernels take counts of
   tokens, blocks and rows as `do_not_specialize`, but for `linear`'s few_kernel, where it would cost registers in a
   decode: so each range between two powers of two has a T that is a multiple of 16 and one that is not.
3. Addresses that are or are not multiples of 16. Tensors of a step begin where the allocator puts them, which is one;
   index logits are taken in slices of 256 tokens, which keeps it.

So `prefill_sizes` is complete; tests/engine/test_warm_up.py holds it against every T. Wanted logits N pass through the
kernels of the head, for which 1 and 2 hold too; beyond LOGITS rows its tile stays the same.

The steps hold padding alone (state slots -1), which reads no cache and writes none.
"""

from __future__ import annotations

import torch

from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_prompts import PromptSteps
from wellhead.model.device_step import StepInputs
from wellhead.model.state import ModelState

LOGITS = 128  # rows from which the vocabulary's product has one tile


def prefill_sizes(chunk_tokens: int) -> list[int]:
    """Numbers of tokens whose prefills launch every variant that 2 to `chunk_tokens` tokens can."""
    found: set[int] = set()
    low = 1
    while low < chunk_tokens:
        high = min(2 * low, chunk_tokens)  # low < T <= high
        wanted = (high, high - 1, high // 16 * 16)
        found.update(size for size in wanted if size > low)
        low = high
    return sorted(found)


def padding(tokens: int, pages: int, device: torch.device) -> StepInputs:
    """A prefill of that many tokens of nobody, laid out as `StepInputs.of` does."""

    def full(value: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.full(shape, value, dtype=dtype, device=device)

    long, short = torch.int64, torch.int32
    return StepInputs(
        token_ids=full(0, long, tokens),
        positions=full(0, long, tokens),
        rows=full(0, short, tokens),
        state_slots=full(-1, long, tokens),
        page_table=full(-1, short, 1, pages),
        window_table=full(-1, short, 1, pages),
        firsts=full(0, short, tokens),
        ends={ratio: full(-1, short, 1) for ratio in (4, 128)},
    )


def warm_prompts(model: DeviceModel, state: ModelState, prompts: PromptSteps, chunk_tokens: int) -> None:
    """Run what steps over prompts launch: those that are not captured, of every reach, and the head."""
    for step in prompts.steps.values():
        if not step.captured:
            step.run()
    largest = max(prompts.sizes, default=0)
    for pages, ws in prompts.by_reach.items():
        for tokens in prefill_sizes(chunk_tokens):
            if tokens > largest:
                model.forward(padding(tokens, pages, model.device), state, ws)
    ws = next(iter(prompts.by_reach.values()))  # the head is the same for every reach
    for rows in (1, *prefill_sizes(min(LOGITS, chunk_tokens))):
        best = torch.empty(rows, dtype=torch.int64, device=model.device)
        streams = prompts.streams.new_zeros(rows, *prompts.streams.shape[1:])
        model.best(model.logits(streams, ws), ws, best)


def warm_drafts(mtp: DeviceMtp, state: ModelState, prompts: PromptSteps, chunk_tokens: int) -> None:
    """Run the drafting layer behind prompts of any length and reach, and its chain for up to LOGITS requests."""
    for pages, ws in prompts.by_reach.items():
        for tokens in (1, *prefill_sizes(chunk_tokens)):
            inputs = padding(tokens, pages, ws.streams.device)
            streams = mtp.forward(ws.streams[:tokens].zero_(), inputs.token_ids, inputs, state, ws)
            if tokens <= LOGITS:
                mtp.guess(streams, inputs.only(torch.arange(tokens, device=streams.device)), state, ws, 2)
