"""Recall: a fact planted in a long text, asked for at its end. Questions are generated from a small spec.

Spec (a JSON object; every key is required):

    filler   list of sentences that say nothing about the facts
    fact     sentence with {name} and {value}, for example "The code of {name} is {value}."
    ask      how the prompt goes on after the text, with {name}: "The code of {name} is"
    names    list of names; each prompt plants `facts` of them and asks for one
    values   list of values, or a number of decimal digits d: a value is then one of 10**(d-1) .. 10**d - 1
    facts    facts planted in a prompt, at least 1: all but one are distractors
    lengths  list of filler sentence counts; question i uses lengths[i % len(lengths)]
    count    questions
    seed     whole number
    chat     true if the prompt is a user turn

Prompt: filler and facts in random order, joined by spaces, then a line break and `ask`. Answer: the value.
"""

from __future__ import annotations

from random import Random
from typing import Any

from wellhead.evals.draws import below, drawn
from wellhead.evals.records import DataError
from wellhead.evals.task import Question

KEYS: dict[str, type | tuple[type, ...]] = {
    "filler": list, "fact": str, "ask": str, "names": list, "values": (list, int), "facts": int,
    "lengths": list, "count": int, "seed": int, "chat": bool,
}  # fmt: skip


def check_spec(spec: Any, where: str) -> None:
    """Raise DataError, naming `where` and the key, unless `spec` has the shape above."""
    if not isinstance(spec, dict):
        raise DataError(f"{where}: expected an object with keys {', '.join(KEYS)}, got {type(spec).__name__}")
    for key, kind in KEYS.items():
        # bool is an int in Python, but `true` is no count.
        if not isinstance(spec.get(key), kind) or (kind is not bool and isinstance(spec[key], bool)):
            raise DataError(f"{where}: key {key!r} is missing or of another type, got {spec.get(key)!r}")
    for key in ("filler", "names", "lengths"):
        kind = int if key == "lengths" else str
        if not spec[key] or not all(isinstance(item, kind) for item in spec[key]):
            raise DataError(f"{where}: key {key!r} must be a list of {kind.__name__}, not empty")
    if spec["count"] < 1:
        raise DataError(f"{where}: key 'count' must be at least 1, got {spec['count']}")
    for key, fields in (("fact", ("{name}", "{value}")), ("ask", ("{name}",))):
        if any(name not in spec[key] for name in fields):
            raise DataError(f"{where}: key {key!r} must contain {' and '.join(fields)}, got {spec[key]!r}")
    values = spec["values"]
    available = 9 * 10 ** (values - 1) if isinstance(values, int) and values > 0 else 0
    available = len(values) if isinstance(values, list) else available
    if not 1 <= spec["facts"] <= min(len(spec["names"]), available):
        raise DataError(
            f"{where}: key 'facts' is {spec['facts']}; it must be at least 1 and at most the number of "
            f"names ({len(spec['names'])}) and of values ({available})"
        )


def recall_questions(spec: Any, where: str) -> list[Question]:
    """The questions of a spec, the same on every machine. `where` names the spec in errors."""
    check_spec(spec, where)
    rng = Random(spec["seed"])
    return [_question(spec, spec["lengths"][i % len(spec["lengths"])], rng) for i in range(spec["count"])]


def _question(spec: dict[str, Any], length: int, rng: Random) -> Question:
    names = drawn(rng, spec["names"], spec["facts"])
    values = _values(spec["values"], spec["facts"], rng)
    sentences = [spec["filler"][below(rng, len(spec["filler"]))] for _ in range(length)]
    for name, value in zip(names, values, strict=True):
        sentences.insert(below(rng, len(sentences) + 1), spec["fact"].format(name=name, value=value))
    # names[0] is a random one of the planted names, at a random place.
    return Question(" ".join(sentences) + "\n" + spec["ask"].format(name=names[0]), values[0], spec["chat"])


def _values(values: list[Any] | int, count: int, rng: Random) -> list[str]:
    """`count` different values."""
    if isinstance(values, list):
        return [str(value) for value in drawn(rng, values, count)]
    found: list[str] = []
    while len(found) < count:
        value = str(10 ** (values - 1) + below(rng, 9 * 10 ** (values - 1)))
        if value not in found:
            found.append(value)
    return found
