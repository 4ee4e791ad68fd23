"""What a plan says, in words and as JSON."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wellhead.dispatch.cards import CardModel
    from wellhead.model.fit import Fit
    from wellhead.model.identify import Identity
    from wellhead.model.prediction import Rate

SCHEMA = 1


@dataclass
class Answer:
    """Everything that is printed. `smallest` is the smallest set of such cards that holds what was asked for."""

    name: str
    identity: Identity
    card: CardModel
    asked: argparse.Namespace
    fit: Fit
    smallest: Fit | None
    largest: Fit | None
    decode: Rate
    prefill: Rate
    notes: list[str] = field(default_factory=list)


def as_text(answer: Answer) -> str:
    asked, card, plan = answer.asked, answer.card, answer.fit.plan
    requests = f"{asked.concurrency} request{'s' * (asked.concurrency > 1)}"
    lines = [
        f"{answer.name}: {answer.identity.title}",
        f"on {_cards(asked.tp, card)} ({card.arch}, {card.memory / 1e9:.1f} GB, {card.gb_s:g} GB/s, {card.sms} SMs; "
        f"{card.source})",
        "",
        f"a rank's {plan.available / 1e9:.2f} GB ({asked.mem_fraction:g} of the card)",
        *(f"  {what:<44} {size / 1e9:9.2f} GB" for what, size in plan.rows()),
        "",
        f"asked for            {requests} of {asked.context:,} tokens: {'fits' if answer.fit.fits else 'does not fit'}",
        f"tokens that fit      {plan.tokens:,} of all requests together",
        f"largest context      {answer.fit.longest:,} with {requests}, {answer.fit.alone:,} with one alone",
    ]
    if answer.fit.missing or not answer.fit.fits:
        lines.append(f"what fits            {_smallest(answer)}")
    lines += ["", *_rates(answer), *(["", *(f"note: {note}" for note in answer.notes)] if answer.notes else [])]
    return "\n".join(lines)


def _rates(answer: Answer) -> list[str]:
    asked, decode, prefill = answer.asked, answer.decode, answer.prefill
    lines = [
        f"decode, predicted    {decode.predicted:,.1f} tokens/s ({decode.seconds * 1e3:.2f} ms a step); "
        f"the bandwidth's bound {decode.bound:,.1f} ({decode.bound_seconds * 1e3:.2f} ms)",
        f"prefill, predicted   {prefill.predicted:,.0f} tokens/s; the bound of steps of {prefill.tokens:.0f} tokens "
        f"{prefill.bound:,.0f}; first token of {asked.context:,} after {asked.context / prefill.predicted:.1f} s",
    ]
    if asked.speculative_tokens:
        lines[0] += f"; {(1 + asked.speculative_tokens) * decode.predicted:,.1f} if every draft is right"
    return lines


def _cards(count: int, card: CardModel) -> str:
    return f"{count} x {card.name}" if count > 1 else card.name


def _smallest(answer: Answer) -> str:
    if answer.smallest is not None:
        world = answer.smallest.split.world
        return f"{_cards(world, answer.card)}: --tp {world}, {answer.smallest.plan.tokens:,} tokens"
    if answer.largest is None or answer.largest.missing:
        return "no number of such cards"
    plan = answer.largest.plan
    most = f"no number of such cards: the model splits over {answer.largest.split.world} at most, where"
    if not answer.largest.alone:
        missing = (plan.used - plan.available) / 1e9
        return f"{most} {missing:.2f} GB a card are missing; take cards with more memory"
    return f"{most} {plan.tokens:,} tokens fit; shorten --context or lower --concurrency"


def as_json(answer: Answer) -> dict[str, Any]:
    asked, card, plan = answer.asked, answer.card, answer.fit.plan
    smallest = answer.smallest
    return {
        "schema": SCHEMA,
        "model": answer.name,
        "kind": answer.identity.kind,
        "card": {"key": card.key, "name": card.name, "arch": card.arch, "memory": card.memory, "gb_s": card.gb_s},
        "tp": asked.tp,
        "context": asked.context,
        "concurrency": asked.concurrency,
        "speculative_tokens": asked.speculative_tokens,
        "fits": answer.fit.fits,
        "runs": not answer.fit.missing,
        "bytes_per_rank": {
            "available": plan.available, "experts": plan.weights.experts, "dense": plan.weights.dense,
            "scales": plan.weights.scales, "vocabulary": plan.weights.vocabulary, "caches": plan.caches,
            "workspace": plan.workspace, "graphs": plan.graphs, "reserved": plan.reserved,
        },
        "tokens": plan.tokens,
        "largest_context": {"together": answer.fit.longest, "alone": answer.fit.alone},
        "smallest": None if smallest is None else {"tp": smallest.split.world, "tokens": smallest.plan.tokens},
        "decode": _rate(answer.decode),
        "prefill": _rate(answer.prefill),
        "notes": answer.notes,
    }  # fmt: skip


def _rate(rate: Rate) -> dict[str, float]:
    return {"tokens_s_predicted": round(rate.predicted, 2), "tokens_s_bound": round(rate.bound, 2)}
