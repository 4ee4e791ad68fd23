"""Whether a model fits cards of some memory, how much of it does, and how many such cards it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wellhead.dispatch.choose import NoImplementation
from wellhead.dispatch.features import Features
from wellhead.dispatch.spec import REFERENCE
from wellhead.model.choices import Choices, choose_ops
from wellhead.model.config import ModelConfig
from wellhead.model.memory_plan import MemoryPlan, largest, plan_memory
from wellhead.model.numerics import Numerics
from wellhead.model.reach import CHUNK_TOKENS
from wellhead.model.split import Experts, Split, splits
from wellhead.model.state import PAGE_TOKENS, pages_for
from wellhead.model.working_memory import Steps


@dataclass(frozen=True)
class Wanted:
    """`requests` together, each of up to `context` tokens, in steps of `chunk_tokens` and decodes of `sizes` requests.

    memory: bytes of a card that may be taken.
    """

    memory: int
    context: int
    requests: int
    sizes: tuple[int, ...]
    chunk_tokens: int = CHUNK_TOKENS
    drafts: int = 0


@dataclass(frozen=True)
class Fit:
    """`plan` of one rank at the wanted context; `longest` tokens each that so many requests could have, and `alone` one
    request, 0 if not a page. `missing`: ops without a kernel for these sizes and that card, and why.
    """

    split: Split
    plan: MemoryPlan
    pages_wanted: int
    longest: int
    alone: int
    missing: Mapping[str, str]

    @property
    def fits(self) -> bool:
        """In memory; whether it runs, `missing` says."""
        return self.plan.pages >= self.pages_wanted


def choices_for(config: ModelConfig, split: Split, features: Features) -> tuple[Choices, dict[str, str]]:
    """The ops' choices on a card with those features, references where no kernel fits; those ops, and why."""
    missing = {} if config.expert_dtype == "fp4" else {"moe": f"{config.expert_dtype} experts run in torch so far"}
    while True:
        try:
            return choose_ops(config, split, features, dict.fromkeys(missing, REFERENCE)), missing
        except NoImplementation as error:
            missing[error.op] = error.why


def fit(config: ModelConfig, numerics: Numerics, split: Split, wanted: Wanted, features: Features) -> Fit:
    """ValueError when the model cannot be split so."""
    split.check(config)
    choices, missing = choices_for(config, split, features)

    def plan(context: int, requests: int, sizes: tuple[int, ...]) -> MemoryPlan:
        steps = Steps(wanted.chunk_tokens, sizes, context, wanted.drafts)
        return plan_memory(config, numerics, split, wanted.memory, steps, choices, slots=requests)

    def held(pages: int, requests: int, sizes: tuple[int, ...]) -> bool:
        return plan(pages * PAGE_TOKENS, requests, sizes).pages >= requests * pages

    most = pages_for(config.max_position_embeddings)
    own, one = (wanted.requests, wanted.sizes), (1, (1,))
    return Fit(
        split,
        plan(wanted.context, *own),
        wanted.requests * pages_for(wanted.context),
        PAGE_TOKENS * largest(most, lambda pages: held(pages, *own)),
        PAGE_TOKENS * largest(most, lambda pages: held(pages, *one)),
        missing,
    )


def fewest(config: ModelConfig, judge: Callable[[Split], Fit], experts: Experts) -> tuple[Fit | None, Fit | None]:
    """(the smallest number of ranks that fits and runs, the largest there is) of those the model can be split over."""
    last = None
    for split in splits(config, experts):
        last = judge(split)
        if last.fits and not last.missing:
            return last, last
    return None, last
