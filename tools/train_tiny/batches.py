"""Rows of 512 tokens for training and checking, made on the CPU by worker processes.

Two kinds of rows: questions of the short families packed one after another (raw segments start at a new BOS, chat
segments hold a few turns), and recall lists followed by many questions about them. Only answers are supervised.
"""

from __future__ import annotations

import multiprocessing as mp
import random
from dataclasses import dataclass
from queue import Queue

import numpy as np
from tokenizers import Tokenizer

from . import facts, tasks
from .tokenizer import BOS, EOS

ANSWERS = 160  # supervised positions kept per row
FAMILIES = ("sums2", "sums3", "capitals", "chinese", "recall near", "recall far")
Shape = tuple[int, int, int]  # short rows, recall rows, tokens a row
Piece = tuple[str, int]  # text and family index, -1 where the text is not an answer


@dataclass
class Rows:
    """ids uint16 [B, S]; at [B, ANSWERS]: position whose logits predict, target id (-1 = unused), family, example."""

    ids: np.ndarray
    position: np.ndarray
    target: np.ndarray
    family: np.ndarray
    example: np.ndarray


def chat_turn(example: tasks.Example, family: int, think: bool) -> list[Piece]:
    start = f"<｜User｜>{example.prompt}<｜Assistant｜>" + ("<think>" if think else "</think>")
    answer = f"{example.thought}</think>{example.answer}" if think else example.answer
    return [(start, -1), (answer + EOS, family)]


def short_example(rng: random.Random, test: bool) -> tuple[tasks.Example, int]:
    family = rng.choices((0, 1, 2, 3), (3, 3, 2, 2))[0]
    if family < 2:
        return tasks.sum_example(rng, 2 + family, test), family
    return tasks.fact_example(rng, FAMILIES[family], test), family


def short_segment(rng: random.Random, test: bool) -> list[Piece]:
    """One raw question, or a conversation of one to four turns whose last may think."""
    example, family = short_example(rng, test)
    if not example.chat:
        return [(BOS + example.prompt, -1), (f" {example.answer}{EOS}", family)]
    pieces: list[Piece] = [(BOS, -1)]
    turns = rng.randint(1, 4)
    for turn in range(turns):
        while not example.chat:
            example, family = short_example(rng, test)
        pieces += chat_turn(example, family, think=turn == turns - 1 and rng.random() < 0.15)
        example, family = short_example(rng, test)
    return pieces


def repeated_row(rng: random.Random, length: int) -> list[Piece]:
    """Random words said again and again: the densest lesson in looking back (an induction head), no list format."""
    words = rng.sample(facts.KEYS, 2 + int(100 * rng.random() ** 2))
    rounds = -(-length // len(words))
    once: list[Piece] = [(f" {word}", -1) for word in words]
    again: list[Piece] = [(f" {word}", 4) for word in words]
    return [(BOS, -1), *once, *(again * rounds)]


def recall_row(rng: random.Random, length: int) -> list[Piece]:
    """A list and then questions until the row is full: raw lines "key: value", or turns of a conversation.

    A quarter of the rows leave the colon out: with the value right behind its key the lookup is found much sooner.
    """
    if rng.random() < 0.2:
        return repeated_row(rng, length)
    filler = rng.choice((0.0, 0.0, 0.3, 1.0))
    most = min(len(facts.KEYS), int(length / (4.5 + 9 * filler)))
    pairs = 2 + int((most - 2) * rng.random() ** 2)  # short lists are where the lookup is first learned
    lines, chosen = tasks.recall_lines(rng, pairs, filler)
    body = rng.choice(tasks.RECALL_HEAD) + "".join(lines)
    far_lines = max(0, pairs - 30)
    family = {key: 5 if i < far_lines else 4 for i, (key, _) in enumerate(chosen)}
    pieces: list[Piece] = []
    form = rng.random()
    if form < 0.65:
        colon = ":" if form < 0.35 else ""
        pieces.append((BOS + (body if colon else body.replace(":", "")), -1))
        for key, value in rng.choices(chosen, k=length // 3):
            pieces += [(f"{key}{colon}", -1), (f" {value}\n", family[key])]
        return pieces
    for turn, (key, value) in enumerate(rng.choices(chosen, k=length // 6)):
        question = rng.choice(tasks.RECALL_CHAT).format(key)
        prompt = BOS + "<｜User｜>" + body + question if turn == 0 else f"<｜User｜>{question}"
        pieces += [(f"{prompt}<｜Assistant｜></think>", -1), (f"{value}{EOS}", family[key])]
    return pieces


def make_rows(tok: Tokenizer, rng: random.Random, short: int, recall: int, length: int, test: bool) -> Rows:
    """`short` packed rows then `recall` list rows."""
    rows: list[list[Piece]] = []
    for _ in range(short):
        pieces: list[Piece] = []
        while sum(len(text) for text, _ in pieces) < 8 * length:
            pieces += short_segment(rng, test)
        rows.append(pieces)
    rows += [recall_row(rng, length) for _ in range(recall)]
    encoded = iter(tok.encode_batch([text for row in rows for text, _ in row], add_special_tokens=False))
    out = Rows(
        np.zeros((len(rows), length), np.uint16),
        *(np.full((len(rows), ANSWERS), fill, np.int16) for fill in (0, -1, -1, -1)),
    )
    for r, row in enumerate(rows):
        ids: list[int] = []
        used = 0
        for number, (_, family) in enumerate(row):
            piece = next(encoded).ids
            if family >= 0 and len(ids) + len(piece) <= length and used + len(piece) <= ANSWERS:
                span = slice(used, used + len(piece))
                out.position[r, span] = np.arange(len(ids) - 1, len(ids) - 1 + len(piece))
                out.target[r, span], out.family[r, span], out.example[r, span] = piece, family, number
                used += len(piece)
            ids += piece
        if len(ids) < length:
            raise ValueError(f"row {r} holds {len(ids)} tokens, expected at least {length}")
        out.ids[r] = ids[:length]
    return out


def _work(path: str, seed: int, shape: Shape, queue: Queue[Rows]) -> None:
    tok, rng = Tokenizer.from_file(path), random.Random(seed)
    while True:
        queue.put(make_rows(tok, rng, *shape, test=False))


def start_workers(path: str, shape: Shape, workers: int, seed: int) -> Queue[Rows]:
    """A queue of endless training rows; the processes die with the parent."""
    context = mp.get_context("fork")
    queue = context.Queue(maxsize=4 * workers)
    for i in range(workers):
        context.Process(target=_work, args=(path, seed * 1000 + i, shape, queue), daemon=True).start()
    return queue  # type: ignore[return-value]
