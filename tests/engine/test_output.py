"""A request's tokens as text: nothing is lost, joined or doubled, however the bytes fall on tokens."""

from __future__ import annotations

import random

from wellhead.engine.llm import LLM
from wellhead.engine.output import TextOutput

UNKNOWN_ID = 263  # of the model's vocabulary, not of the tokenizer


def shown(llm: LLM, ids: list[int], stop: list[str]) -> str:
    out, text = TextOutput(llm.tokenizer, stop), ""
    for token in ids:
        more, stopped = out.push(token)
        text += more
        if stopped:
            break
    return text + out.finish()[0]


def test_an_id_without_text_ends_an_unfinished_character(llm: LLM) -> None:
    first, *rest = llm.tokenizer.encode("你")
    assert shown(llm, [first, UNKNOWN_ID, *rest, *llm.tokenizer.encode("a")], []) == "\ufffd" * 4 + "a"


def test_random_ids_and_stop_strings_give_the_text_up_to_the_first_stop(llm: LLM) -> None:
    dice = random.Random(3)
    pool = [*llm.tokenizer.encode("你🙂aab"), UNKNOWN_ID]
    for _ in range(500):
        ids = dice.choices(pool, k=dice.randrange(1, 14))
        parts: list[list[int]] = [[]]
        for token in ids:
            if token == UNKNOWN_ID:
                parts.append([])
            else:
                parts[-1].append(token)
        whole = "\ufffd".join(map(llm.tokenizer.decode, parts))
        stop = ["".join(dice.choices("ab你\ufffd", k=dice.randrange(1, 4))) for _ in range(dice.randrange(3))]
        ends = [whole.index(each) for each in stop if each in whole]
        assert shown(llm, ids, stop) == whole[: min(ends, default=len(whole))]
