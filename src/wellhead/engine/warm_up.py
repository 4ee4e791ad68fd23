"""Every kernel that a step can launch, compiled before the first request.

A decode has one of the ladder's sizes, a step over prompts one of `reach.prompt_sizes`, and each of them runs here or
is captured: their shapes are all there are. What follows behind prompts has any number N of rows: the head, as many as
want logits; the chain of drafts, as many as requests. What a launch compiles for depends on N in these ways only:

1. The tile, and which of two kernels. Every op's `choose_config` gives one answer for all N up to the next power of
   two, or has decided for the workspace's most.
2. Integer arguments, of which Triton makes a variant for 1 and one for multiples of 16. The kernels take counts of
   tokens, blocks and rows as `do_not_specialize`, but for `linear`'s few_kernel, where it would cost registers in a
   decode: so each range between two powers of two has an N that is a multiple of 16 and one that is not.
3. Addresses that are or are not multiples of 16. Tensors of a step begin where the allocator puts them, which is one.

So `row_counts` is complete; tests/engine/test_warm_up.py holds it against every N. Beyond LOGITS rows the head's tile
stays the same.

The steps hold padding alone (state slots -1), which reads no cache and writes none.
"""

from __future__ import annotations

import torch

from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_prompts import PromptSteps
from wellhead.model.state import ModelState

LOGITS = 128  # rows from which the vocabulary's product has one tile


def row_counts(most: int) -> list[int]:
    """Numbers of rows that launch every variant that 1 to `most` rows can."""
    found, low = {1}, 1
    while low < most:
        high = min(2 * low, most)  # low < N <= high
        wanted = (high, high - 1, high // 16 * 16)
        found.update(size for size in wanted if size > low)
        low = high
    return sorted(found)


def warm_prompts(model: DeviceModel, prompts: PromptSteps) -> None:
    """Run what steps over prompts launch: those that are not captured, and the head, the same for every reach."""
    for step in prompts.steps.values():
        for part in () if step.captured else step.parts:
            part()
    ws = next(iter(prompts.by_reach.values()))
    for rows in row_counts(min(LOGITS, len(prompts.streams))):
        best = torch.empty(rows, dtype=torch.int64, device=model.device)
        streams = prompts.streams.new_zeros(rows, *prompts.streams.shape[1:])
        model.best(model.logits(streams, ws), ws, best)


def warm_drafts(mtp: DeviceMtp, state: ModelState, prompts: PromptSteps) -> None:
    """Run the chain of drafts behind prompts of any number of requests and every reach."""
    size = max(prompts.sizes)
    for pages, ws in prompts.by_reach.items():
        for rows in row_counts(min(prompts.requests, size)):
            padding = prompts.steps[size, pages].inputs.only(torch.arange(rows, device=ws.streams.device))
            mtp.guess(ws.streams[:rows].zero_(), padding, state, ws, 2)
