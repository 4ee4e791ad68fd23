"""From bytes to tokens before anything is loaded: what one rank's memory will hold, from the configuration alone.

Weights and caches (`standing_memory`) and the buffers that steps work in (`working_memory`) are counted exactly, by
laying them out on the "meta" device. The nodes of CUDA graphs, the CUDA context and NCCL are `Estimates`.

The engine takes its pages from here, `bench step` prints it beside what a card really holds, `plan` and `doctor` answer
from it before anything is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from wellhead.model.choices import INDEX_ROWS, Choices
from wellhead.model.config import ModelConfig
from wellhead.model.numerics import Numerics
from wellhead.model.reach import prompt_reaches, prompt_sizes, reaches
from wellhead.model.split import Split
from wellhead.model.standing_memory import StateBytes, WeightBytes, state_bytes, weight_bytes
from wellhead.model.state import PAGE_TOKENS, pages_for
from wellhead.model.working_memory import Steps, decode_bytes, prompt_bytes, sampler_bytes

GIB = 1 << 30
WINDOW_SHARE = 8


class OutOfMemory(ValueError):
    """The model, its state slots or a single page do not fit; the message says what is missing."""


@dataclass(frozen=True)
class Estimates:
    """What is not counted but guessed: a captured graph's nodes, for each INDEX_ROWS tokens more of a prompt those of a
    layer's choice among index logits, the CUDA context with its kernels, NCCL's buffers. With them a plan is within
    0.2 % of what was in use on one H100 and on two H200 (tests/model/test_memory_plan.py).
    """

    bytes_a_graph_node: int = 16 << 10
    nodes_a_layer: int = 32
    nodes_a_slice: int = 4
    context: int = 3 * GIB // 4
    nccl: int = GIB

    def nodes(self, config: ModelConfig, steps: Steps) -> int:
        """Of all graphs of these steps."""
        prompts = prompt_sizes(steps.chunk_tokens) if steps.chunk_tokens else []
        graphs = len(steps.sizes) * len(reaches(steps.context)) + len(prompts) * len(prompt_reaches(steps.context))
        slices = sum((size - 1) // INDEX_ROWS for size in prompts) * len(prompt_reaches(steps.context))
        whole = self.nodes_a_layer * (config.num_hidden_layers + steps.drafts) * graphs
        return whole + self.nodes_a_slice * config.compress_ratios.count(4) * slices


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank, and what is left for pages: `tokens` = `pages` * 256 of all requests together. `workspace` is
    what steps with prompts and the drawing of tokens take, `graphs` what the decodes take, captured or not, and the
    prompts' graphs.
    """

    available: int
    weights: WeightBytes
    state: StateBytes
    slots: int
    workspace: int
    graphs: int
    reserved: int
    pages: int
    window_pages: int

    @property
    def tokens(self) -> int:
        return self.pages * PAGE_TOKENS

    @property
    def caches(self) -> int:
        """Bytes of all pools and slots."""
        paged = self.pages * (self.state.page - self.state.window_page)
        return paged + self.window_pages * self.state.window_page + self.slots * self.state.slot

    @property
    def used(self) -> int:
        return self.weights.total + self.caches + self.workspace + self.graphs + self.reserved

    def checked(self) -> MemoryPlan:
        """Itself; OutOfMemory names the shortfall where not one page fits."""
        if self.pages:
            return self
        missing = self.state.page - (self.available - self.used)
        need = ", ".join(f"{what} {size / 1e9:.2f} GB" for what, size in self.rows()[:-1])
        raise OutOfMemory(
            f"{self.available / 1e9:.2f} GB a rank are {missing / 1e9:.2f} GB too few for one page of "
            f"{PAGE_TOKENS} tokens ({need}); use more ranks, fewer requests or smaller steps"
        )

    def rows(self) -> list[tuple[str, int]]:
        """(what, bytes) for people, in order; they sum to `available`."""
        return [
            ("experts", self.weights.experts),
            ("dense weights", self.weights.dense),
            ("scales", self.weights.scales),
            ("vocabulary", self.weights.vocabulary),
            (f"caches of {self.tokens:,} tokens, {self.slots} request{'s' * (self.slots > 1)}", self.caches),
            ("workspace of prompts and sampling", self.workspace),
            ("decode steps, graphs", self.graphs),
            ("context and communication (estimate)", self.reserved),
            ("free", self.available - self.used),
        ]


def window_pool(pages: int, slots: int, chunk_tokens: int) -> int:
    """Window pages beside that many logical ones. A request needs those that its window of 128 tokens touches, a step's
    prompts those they are computed into; all before them are given back. The rest keeps the ends of cached prefixes
    that later prompts may resume at: one in WINDOW_SHARE pages, where a prompt that ends leaves one.
    """
    return min(pages, 2 * slots + pages_for(chunk_tokens) + 1 + pages // WINDOW_SHARE)


def largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `most` that holds, of a property that holds up to some number; 0 for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def plan_memory(
    config: ModelConfig, numerics: Numerics, split: Split, available: int, steps: Steps, choices: Choices, *,
    slots: int, estimates: Estimates | None = None,
) -> MemoryPlan:  # fmt: skip
    """How many tokens fit into `available` bytes of one rank beside the weights (with drafts the MTP module's too),
    `slots` requests and the memory that `steps` work in, run by `choices`; perhaps none (`MemoryPlan.checked`). The
    window pool is as large as `window_pool` says.
    """
    estimates = estimates or Estimates()
    with_mtp = steps.drafts > 0
    weights = weight_bytes(config, split, with_mtp=with_mtp)
    state = state_bytes(config, numerics, with_mtp=with_mtp)
    workspace = prompt_bytes(config, numerics, split, choices, steps, slots)
    workspace += sampler_bytes(config, choices, slots * (1 + steps.drafts))
    graphs = decode_bytes(config, numerics, split, choices, steps)
    if steps.captured:
        graphs += estimates.nodes(config, steps) * estimates.bytes_a_graph_node
    reserved = estimates.context + (estimates.nccl if split.world > 1 else 0)
    empty = MemoryPlan(available, weights, state, slots, workspace, graphs, reserved, 0, 0)

    def of(pages: int) -> MemoryPlan:
        return replace(empty, pages=pages, window_pages=window_pool(pages, slots, steps.chunk_tokens))

    # WINDOW_SHARE logical pages take a window page at least: no layer but window ones need have pages of its own
    share = WINDOW_SHARE * (state.page - state.window_page) + state.window_page
    most = WINDOW_SHARE * ((available - empty.used) // share + 1)
    return of(largest(most, lambda pages: of(pages).used <= available))
