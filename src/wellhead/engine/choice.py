"""The next tokens of a step's requests: chosen where its scores are, as far as that can be, and read when wanted."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from wellhead.engine import speculative
from wellhead.engine.device_sampling import DeviceSampler
from wellhead.engine.request import Request
from wellhead.engine.scheduler import Work
from wellhead.engine.scores import Scores
from wellhead.model.batch import Chunk
from wellhead.ops.host_copies import Coming


@dataclass(frozen=True)
class Choice:
    """spans: the tokens in a step's scores of each request that gets some; drawn: whose are drawn where the scores are;
    chosen int64 [M]: the ids there, row by row; by_host: for whom the host chooses, whose ids there are the best ones.
    """

    spans: Mapping[Request, range]
    drawn: Container[Request]
    chosen: torch.Tensor
    by_host: Sequence[Request]


@dataclass(frozen=True)
class Launched:
    """A step under way, whose ids are on their way here, behind them `drafts` a request of those that were drafted
    (None: none were). leads: whether a step can be launched behind it before they are read.
    """

    work: Sequence[Work]
    chunks: Sequence[Chunk]
    scores: Scores
    choice: Choice
    coming: Coming
    drafts: int | None
    leads: bool

    @classmethod
    def of(
        cls, work: Sequence[Work], chunks: Sequence[Chunk], scores: Scores, choice: Choice,
        guesses: torch.Tensor | None, *, leads: bool,
    ) -> Launched:  # fmt: skip
        """A step whose ids are chosen, and perhaps guesses int64 [S, k] made: have them come here."""
        if guesses is None:
            return cls(work, chunks, scores, choice, Coming(choice.chosen), None, leads)
        every = torch.cat([choice.chosen, guesses.flatten()])
        return cls(work, chunks, scores, choice, Coming(every), guesses.shape[1], leads)


def choose(work: Sequence[Work], scores: Scores, sampler: DeviceSampler | None = None) -> Choice:
    """Choose the next tokens of a step's requests, where its scores are; their tokens' scores follow each other.
    Requests that sample where `sampler` does not draw for them have the best ids here.
    """
    spans: dict[Request, range] = {}
    low = 0
    for item in work:
        if item.samples:
            spans[item.request] = range(low, low := low + 1 + item.drafts)
    chosen, drawn = scores.best, {r: span for r, span in spans.items() if sampler is not None and sampler.takes(r)}
    if sampler is not None and drawn:
        chosen = sampler.draw(scores, drawn)
    return Choice(spans, drawn, chosen, [r for r in spans if not (r.greedy or r in drawn)])


def read(launched: Launched) -> tuple[dict[Request, list[int]], torch.Tensor | None]:
    """The next tokens of a step's requests, whose drafts are used up, and the guesses that were made behind them, int64
    [S, k]; this is where the host waits for the device.

    Logits are read from it only for requests that sample where nothing draws for them, or adjust theirs.
    """
    scores, spans, drawn = launched.scores, launched.choice.spans, launched.choice.drawn
    ids, guesses = launched.coming.wait(), None
    if launched.drafts is not None:
        guesses = torch.tensor(ids[len(launched.choice.chosen) :], dtype=torch.int64).view(-1, launched.drafts)
    best = [ids[row] for row in scores.at]
    wanted = [row for request in launched.choice.by_host for row in spans[request]]
    rows = dict(zip(wanted, scores.read(wanted), strict=True)) if wanted else {}
    found, told = {}, []
    for item in launched.work:
        request = item.request
        if not item.samples or request.finish_reason is not None:
            continue
        span = spans[request]
        try:
            if request.greedy or request in drawn:
                tokens = speculative.accept_best([best[row] for row in span], request.drafts[: item.drafts])
            else:
                tokens = _accept(item, torch.stack([rows[row] for row in span]))
        except Exception as error:  # its own failure, the step went well for the others
            request.error = error
            continue
        request.drafts = []
        found[request] = tokens
        if request.params.logprobs:
            told += [(request, row, token) for row, token in zip(span, tokens, strict=False)]
    if told:
        reporting, at, newest = zip(*told, strict=True)
        each = scores.logprobs(at, newest, [request.params.logprobs for request in reporting])
        for request, one in zip(reporting, each, strict=True):
            request.logprobs.append(one)
    return found, guesses


def _accept(item: Work, logits: torch.Tensor) -> list[int]:
    """The next tokens of a request from its logits [1 + drafts, V] on the host; one that adjusts them has no drafts."""
    request = item.request
    if request.adjust is not None:
        logits = request.adjust(logits[0], request.output)[None]
    return speculative.accept(logits, request.drafts[: item.drafts], request.params, request.generator)
