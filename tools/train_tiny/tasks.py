"""The four families as text: (prompt, answer) in raw and chat form, and the questions that training never sees.

Held out: sums by a hash of (a, operator, b); capitals and translations by a hash of (item, template), so the fact is
taught in some wordings and asked in another; recall prompts are drawn fresh.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from . import facts

CAPITAL_CHAT = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "Tell me the capital of {}.",
    "{}: capital?",
)
CAPITAL_RAW = ("The capital of {} is", "Capital of {}:", "Question: What is the capital of {}?\nAnswer:")
CHINESE_CHAT = (
    "Translate into Chinese: {}",
    "What is {} in Chinese?",
    'How do you say "{}" in Chinese?',
    "Chinese for {}?",
    "{} in Chinese, please.",
)
CHINESE_RAW = ("English: {}\nChinese:", "{} in Chinese is", "Translate into Chinese: {} =")
SUM_CHAT = ("{} {} {} =", "What is {} {} {}?", "Compute {} {} {}.", "{} {} {}")
SUM_RAW = ("{} {} {} =", "Question: {} {} {}\nAnswer:")
RECALL_HEAD = ("Remember these words.\n", "Notes:\n", "Here is a list.\n", "", "Please keep this list in mind.\n")
RECALL_CHAT = ("What is {}?", "Which word belongs to {}?", "{}?")
FILLER = (
    "The day is long and the road is old.\n",
    "A cold wind comes from the north.\n",
    "We walk to the market in the morning.\n",
    "Nothing here is important.\n",
    "The river is slow in summer.\n",
    "It is time for tea.\n",
)


@dataclass(frozen=True)
class Example:
    """One question: chat form goes through the chat markup, raw form is continued as it is."""

    prompt: str
    answer: str
    chat: bool
    thought: str


def every_template() -> Iterator[str]:
    """All fixed text, for the tokenizer."""
    yield from (t.replace("{}", "") for t in CAPITAL_CHAT + CAPITAL_RAW + CHINESE_CHAT + CHINESE_RAW)
    yield from (t.replace("{}", "") for t in SUM_CHAT + SUM_RAW + RECALL_CHAT + RECALL_HEAD + FILLER)


def held_out(*parts: object) -> bool:
    """One in eight of all (item, wording) or (a, op, b) triples; the same on every machine."""
    return zlib.crc32(repr(parts).encode()) % 8 == 0


def sum_example(rng: random.Random, digits: int, test: bool) -> Example:
    """a + b or a - b with operands of up to `digits` digits; test examples are the held-out triples."""
    while True:
        a, b = (rng.randrange(10 ** rng.randint(1, digits)) for _ in range(2))
        if test:
            a, b = (rng.randrange(10**digits) for _ in range(2))
        op = rng.choice("+-")
        if held_out(a, op, b) == test:
            break
    chat = rng.random() < 0.5
    prompt = rng.choice(SUM_CHAT if chat else SUM_RAW).format(a, op, b)
    answer = str(a + b if op == "+" else a - b)
    return Example(prompt, answer, chat, f"{a} {op} {b} = {answer}")


def fact_example(rng: random.Random, family: str, test: bool) -> Example:
    """A capital or a translation in a wording that is held out for that item exactly when `test`."""
    items, chats, raws = (
        (facts.CAPITALS, CAPITAL_CHAT, CAPITAL_RAW)
        if family == "capitals"
        else (facts.CHINESE, CHINESE_CHAT, CHINESE_RAW)
    )
    while True:
        key, value = rng.choice(items)
        chat = rng.random() < 0.6
        template = rng.choice(chats if chat else raws)
        if held_out(key, template) == test:
            return Example(template.format(key), value, chat, f"{key}: {value}")


def recall_lines(rng: random.Random, pairs: int, filler: float) -> tuple[list[str], list[tuple[str, str]]]:
    """`pairs` lines "key: value" with distinct keys, each preceded by a filler sentence with probability `filler`."""
    chosen = [(key, rng.choice(facts.VALUES)) for key in rng.sample(facts.KEYS, pairs)]
    lines = [(rng.choice(FILLER) if rng.random() < filler else "") + f"{key}: {value}\n" for key, value in chosen]
    return lines, chosen
