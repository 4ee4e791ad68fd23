"""Recall: a list of facts, then one of them asked for, further back than the attention window.

Questions are generated from a spec (a JSON object; every key is required):

    heads    list of openings; each prompt starts with one of them
    fact     one line of the list with {name} and {value}, for example "{name}: {value}\n"
    asks     list of {"text": with {name}, "chat": bool}; question i ends with asks[i % len(asks)]
    names    list of names; a prompt uses each at most once
    values   list of values; several names may have the same
    facts    [fewest, most] facts of a prompt
    behind   facts that at least stand between the one asked for and the question
    count    questions
    seed     whole number

Prompt: head, the facts, the ask. Answer: the value.
"""

from __future__ import annotations

from random import Random
from typing import Any

from wellhead.evals.draws import below, drawn
from wellhead.evals.task import Question


def recall_questions(spec: dict[str, Any]) -> list[Question]:
    """The questions of a spec, the same on every machine."""
    rng = Random(spec["seed"])
    return [_question(spec, spec["asks"][i % len(spec["asks"])], rng) for i in range(spec["count"])]


def _question(spec: dict[str, Any], ask: dict[str, Any], rng: Random) -> Question:
    fewest, most = spec["facts"]
    names = drawn(rng, spec["names"], fewest + below(rng, most - fewest + 1))
    values = [spec["values"][below(rng, len(spec["values"]))] for _ in names]
    asked = below(rng, len(names) - spec["behind"])
    lines = [spec["fact"].format(name=n, value=v) for n, v in zip(names, values, strict=True)]
    head = spec["heads"][below(rng, len(spec["heads"]))]
    prompt = head + "".join(lines) + ask["text"].format(name=names[asked])
    return Question(prompt, values[asked], ask["chat"])
