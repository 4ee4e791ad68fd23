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
from wellhead.evals.records import DataError
from wellhead.evals.task import Question

KEYS: dict[str, type] = {
    "heads": list, "fact": str, "asks": list, "names": list, "values": list, "facts": list,
    "behind": int, "count": int, "seed": int,
}  # fmt: skip


def check_spec(spec: Any, where: str) -> None:
    """Raise DataError, naming `where` and the key, unless `spec` has the shape above."""
    if not isinstance(spec, dict):
        raise DataError(f"{where}: expected an object with keys {', '.join(KEYS)}, got {type(spec).__name__}")
    for key, kind in KEYS.items():
        # bool is an int in Python, but `true` is no count.
        if not isinstance(spec.get(key), kind) or isinstance(spec[key], bool):
            raise DataError(f"{where}: key {key!r} is missing or of another type, got {spec.get(key)!r:.80}")
    for key in ("heads", "names", "values"):
        if not spec[key] or not all(isinstance(item, str) for item in spec[key]):
            raise DataError(f"{where}: key {key!r} must be a list of str, not empty")
    if spec["count"] < 1:
        raise DataError(f"{where}: key 'count' must be at least 1, got {spec['count']}")
    if "{name}" not in spec["fact"] or "{value}" not in spec["fact"]:
        raise DataError(f"{where}: key 'fact' must contain {{name}} and {{value}}, got {spec['fact']!r}")
    for ask in spec["asks"] or [None]:
        text = ask.get("text") if isinstance(ask, dict) else None
        if not isinstance(text, str) or "{name}" not in text or not isinstance(ask.get("chat"), bool):
            raise DataError(f'{where}: key \'asks\' needs {{"text": "...{{name}}...", "chat": bool}}, got {ask!r}')
    fewest, most = (*spec["facts"], None, None)[:2]
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (fewest, most))
    if not whole or len(spec["facts"]) != 2 or not 0 <= spec["behind"] < fewest <= most <= len(spec["names"]):
        raise DataError(
            f"{where}: key 'facts' is {spec['facts']}; expected [fewest, most] with behind ({spec['behind']}) < "
            f"fewest <= most <= the number of names ({len(spec['names'])})"
        )


def recall_questions(spec: Any, where: str) -> list[Question]:
    """The questions of a spec, the same on every machine. `where` names the spec in errors."""
    check_spec(spec, where)
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
