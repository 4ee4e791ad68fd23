"""Bytes that an engine's steps take beside weights and caches, from the configuration alone.

The buffers between launches are counted exactly, by laying `Workspace` out on the "meta" device with the plans that
would run; what lives only while a step does is counted at its largest. Needs Triton (not a card): the plans are the
kernels' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wellhead.dispatch.spec import REFERENCE
from wellhead.model.choices import Choices
from wellhead.model.config import ModelConfig
from wellhead.model.numerics import Numerics
from wellhead.model.reach import prompt_reaches, prompt_sizes, reaches
from wellhead.model.split import Split
from wellhead.model.state import pages_for

WARM_LOGITS = 128  # rows of logits that warming up a prefill computes at most (engine.warm_up)


@dataclass(frozen=True)
class Steps:
    """What will be computed: prompts of up to `chunk_tokens` tokens a step (0: none), and decodes, one for each of
    `sizes` requests with `drafts` drafted tokens behind each newest one; a request has up to `context` tokens.
    """

    chunk_tokens: int
    sizes: tuple[int, ...]
    context: int
    drafts: int = 0
    captured: bool = True

    @property
    def places(self) -> int:
        """Tokens of the largest decode: its requests times 1 + drafts."""
        return max(self.sizes, default=0) * (1 + self.drafts)


def logit_rows(slots: int) -> int:
    """Rows of logits that one computation of a prompt makes at most, beside `slots` requests: one each, or those of the
    warm-up.
    """
    return max(slots, WARM_LOGITS)


def workspace_bytes(
    config: ModelConfig, numerics: Numerics, split: Split, choices: Choices, tokens: int, context: int, *,
    chunked: bool, parts: Sequence[int] = (), shorter: Sequence[int] = (),
) -> int:  # fmt: skip
    """Of one `Workspace` for steps of up to `tokens` tokens and those that share its buffers: its `parts` for fewer
    tokens, and each of them for `shorter` requests. Their plans' buffers are included.
    """
    # imports every kernel, which planning weights and caches does without
    from wellhead.model.device_workspace import Workspace

    ws = Workspace(config, numerics, split, choices, tokens, pages_for(context), chunked=chunked, device="meta")
    every = [one.by_reach([*shorter, context]) for one in (ws, *map(ws.part, parts))]
    owned = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _tensors(every, {})}
    return sum(owned.values())


def prompt_bytes(
    config: ModelConfig, numerics: Numerics, split: Split, choices: Choices, steps: Steps, slots: int
) -> int:
    """Of steps over prompts: their workspaces and inputs, and of one step the embedded tokens, the wanted logits and
    drafting.
    """
    tokens = steps.chunk_tokens
    if not tokens:
        return 0
    sizes = prompt_sizes(tokens)
    *shorter, context = prompt_reaches(steps.context)
    given = (config, numerics, split, choices, tokens, context)
    kept = workspace_bytes(*given, chunked=True, parts=sizes[-2::-1], shorter=shorter)
    for size in sizes:
        for reach in (*shorter, context):
            kept += 8 * min(size, slots) * pages_for(reach) + 48 * size
    rows = min(tokens, logit_rows(slots))
    return kept + 2 * tokens * config.hidden_size + _logits(config, split, rows) + _drafting(config, steps, tokens)


def decode_bytes(config: ModelConfig, numerics: Numerics, split: Split, choices: Choices, steps: Steps) -> int:
    """Of all decodes: their workspaces, each size's logits (with drafts the sizes share those) and, for each of the
    `reaches`, its inputs; and what the largest one needs besides while it runs, which captured ones keep in their pool.
    """
    if not steps.sizes:
        return 0
    drafts, (*shorter, context) = steps.drafts, reaches(steps.context)
    *parts, largest = sorted(size * (1 + drafts) for size in set(steps.sizes))
    given = (config, numerics, split, choices, largest, context)
    total = workspace_bytes(*given, chunked=drafts > 0, parts=parts[::-1], shorter=shorter)
    for size in steps.sizes:
        tokens = size * (1 + drafts)
        for reach in (*shorter, context):
            total += 8 * size * pages_for(reach) + 40 * tokens
        total += 0 if drafts else 4 * tokens * config.vocab_size
    most = steps.places
    total += 4 * most * config.vocab_size if drafts else 0
    return total + _logits(config, split, most) + _drafting(config, steps, most)


def sampler_bytes(config: ModelConfig, choices: Choices, rows: int) -> int:
    """Of the four plans that draw sampled requests' tokens on the card, up to so many a step."""
    if choices.of("sampling") == REFERENCE:
        return 0
    from wellhead.ops.sampling import api as sampling

    plans = [
        sampling.plan(rows, config.vocab_size, sampled=True, top_k=k, top_p=p, device="meta")
        for k in (False, True) for p in (False, True)
    ]  # fmt: skip
    return sum(tensor.nbytes for plan in plans for tensor in _tensors(plan, {}))


def _logits(config: ModelConfig, split: Split, rows: int) -> int:
    """fp32 logits on their way: a rank's columns, and with several ranks all of them twice, gathered and side by side;
    the contracted streams in front.
    """
    columns = config.vocab_size // split.world + (2 * config.vocab_size if split.world > 1 else 0)
    return rows * (4 * columns + 2 * config.hidden_size)


def _drafting(config: ModelConfig, steps: Steps, tokens: int) -> int:
    """The MTP module's projections: rounded and projected streams and embeddings."""
    return 3 * tokens * (config.hc_mult + 1) * config.hidden_size if steps.drafts else 0


def _tensors(tree: Any, seen: dict[int, Any]) -> Iterator[torch.Tensor]:
    """Every tensor that our own objects hold. `seen` keeps what was walked alive: ids are not to be used again."""
    if id(tree) in seen:
        return
    seen[id(tree)] = tree
    if isinstance(tree, torch.Tensor):
        yield tree
        return
    parts: Any = ()
    if isinstance(tree, (list, tuple)):
        parts = tree
    elif isinstance(tree, dict):
        parts = tree.values()
    elif type(tree).__module__.startswith("wellhead") and hasattr(tree, "__dict__"):
        parts = vars(tree).values()
    for part in parts:
        yield from _tensors(part, seen)
