"""A runner whose drafts come from the test instead of an MTP layer: how often they are right is the test's choice."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

import torch

from wellhead.engine import speculative
from wellhead.engine.request import Request
from wellhead.engine.runner import Runner, StepRunner
from wellhead.engine.scheduler import Work
from wellhead.engine.speculative import Draft
from wellhead.model.batch import Chunk

Propose = Callable[..., None]
Oracle = Callable[[list[int]], torch.Tensor]


class OracleRunner(Runner):
    """Drafts from `oracle(tokens)`, logits [V] of what follows, spoilt for `wrong` of the tokens by noise that depends
    on the tokens alone.
    """

    def __init__(self, *args: object, oracle: Oracle, tokens: int, wrong: float = 0.3):
        super().__init__(*args)  # type: ignore[arg-type]
        self._oracle, self._most, self._wrong = oracle, tokens, wrong

    def propose(
        self, work: Sequence[Work], chunks: Sequence[Chunk], found: Mapping[Request, list[int]], made: object = None
    ) -> None:
        for request, tokens in found.items():
            known = request.prompt + request.output + tokens
            for _ in range(speculative.draft_count(request, len(known), self._most)):
                logits = self._oracle(known)
                dice = random.Random(sum(known) * 1000 + len(known))
                if dice.random() < self._wrong:
                    logits = logits.roll(dice.randrange(1, len(logits)))
                request.drafts.append(speculative.guess(logits, request.params, request.generator))
                known = [*known, request.drafts[-1].token]


def helped(runner: StepRunner, truth: dict[tuple[int, ...], list[int]]) -> Propose:
    """A runner's `propose`, after which five drafts of six of the prompts in `truth` are the right tokens. The runner
    no longer goes ahead: a card would go on with its own drafts.
    """
    propose, turn, runner.overlaps = runner.propose, itertools.count(), False

    def better(work: object, chunks: object, found: dict[Request, list[int]], made: object = None) -> None:
        propose(work, chunks, found, made)  # type: ignore[arg-type]
        for request, tokens in found.items():
            place, answer = len(request.output) + len(tokens), truth.get(tuple(request.prompt), [])
            for index in range(min(len(request.drafts), len(answer) - place)):
                if next(turn) % 6:
                    request.drafts[index] = Draft(answer[place + index])

    return better
