"""What a decode step takes an engine, beside what its graph takes the card: the rest is the host's, or draws tokens.

    python -m tools.engine_step --layers 16 --batch 1 8 64 --jsonl engine.jsonl
    python -m tools.engine_step --layers 16 --batch 1 8 --drafts 3
    python -m tools.engine_step --layers 8 --batch --prompts 16 256 4096 --chunked-prefill-size 512

Requests of 700 random tokens over the first layers of a published model, random weights; the time between two steps in
which all of them gain a token, read after each step or overlapped, greedy or drawn (temperature 1, top_p 0.9). Where
the answers of both ways are not the same nothing is printed. With --prompts also the time to the first token of a
request alone. Needs a card.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from wellhead.engine.core import Engine
from wellhead.engine.device_runner import DeviceRunner
from wellhead.engine.device_speculative_runner import DeviceSpeculativeRunner
from wellhead.engine.request import Request
from wellhead.engine.runner import MakeRunner
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.story import Story
from wellhead.model.config_file import load_config
from wellhead.model.device_graphs import DecodeStep
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_speculative import SpeculativeStep
from wellhead.model.dummy import dummy_weights
from wellhead.model.memory_plan import window_pool
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import WHOLE
from wellhead.model.published import first_layers, published_config
from wellhead.model.reach import CHUNK_TOKENS
from wellhead.model.state import pages_for
from wellhead.testing.bench import needed_card
from wellhead.testing.record import append, origin, without_files

PROMPT, SETTLING, PROMPTS = 700, 10, 6  # tokens; steps that are not counted; requests, the first is not
KINDS: dict[str, dict[str, float]] = {"greedy": {}, "drawn": {"temperature": 1.0, "top_p": 0.9}}


def made(name: str, layers: int, most: int, context: int, drafts: int = 0, chunk_tokens: int = CHUNK_TOKENS) -> Engine:
    """An engine for `most` requests, over weights that nobody trained."""
    config = load_config(first_layers(published_config(name), layers))
    weights = dummy_weights(config, WHOLE, "cuda", with_mtp=drafts > 0)
    model = DeviceModel(weights, config, Numerics.named("checkpoint"))
    given: dict[str, Any] = {"chunk_tokens": chunk_tokens, "context": context, "phase": Story(sys.stdout).phase}
    runner: MakeRunner = partial(DeviceRunner, **given)
    if drafts:
        runner = partial(DeviceSpeculativeRunner, **given, speculative_tokens=drafts)
    pages = max(most * pages_for(2 * PROMPT), pages_for(context))
    return Engine(
        model, None, frozenset(), max_running=most, num_pages=pages,
        window_pages=window_pool(pages, most, chunk_tokens), prefix_caching=False,
        speculative_tokens=drafts, chunk_tokens=chunk_tokens, context_length=context, make_runner=runner,
    )  # fmt: skip


def run(engine: Engine, batch: int, params: dict[str, Any], tokens: int) -> tuple[float, list[list[int]]]:
    """(median milliseconds between two steps of all requests, their answers)."""
    generator, requests = torch.Generator().manual_seed(0), list[Request]()
    for number in range(batch):
        prompt = torch.randint(engine._model.config.vocab_size, (PROMPT,), generator=generator).tolist()
        asked = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=number, **params)
        requests.append(engine.make_request(prompt, asked))
        engine.submit(requests[-1])
    took, last = [], None
    while engine.busy:
        whole = len(engine.step()) == batch
        now = time.perf_counter()
        if whole and last is not None:
            took.append(1e3 * (now - last))
        last = now if whole else None
    if len(took) <= SETTLING:
        raise ValueError(f"{batch} requests had {len(took)} steps together; give more --tokens")
    return median(took[SETTLING:]), [request.output for request in requests]


@contextmanager
def graphs_timed(engine: Engine, took: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> Iterator[None]:
    """Events around every graph that is launched inside."""
    runner: Any = engine._runner
    ladder = runner._steps if engine._scheduler._most_drafts else runner._decode
    of = ladder.of

    def timed(run: Callable[[], None]) -> None:
        took.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        took[-1][0].record()
        run()
        took[-1][1].record()

    def given(requests: int, pages: int) -> DecodeStep | SpeculativeStep:
        step = copy(of(requests, pages))
        for name in ("verify", "draft") if engine._scheduler._most_drafts else ("run",):
            object.__setattr__(step, name, partial(timed, getattr(step, name)))
        return step

    ladder.of = given
    try:
        yield
    finally:
        ladder.of = of


def measured(engine: Engine, batch: int, params: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Milliseconds of a step in turn, of its graphs, of a step that overlaps; ValueError where their answers differ."""
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    engine._overlap, graphs = False, 2 if engine._scheduler._most_drafts else 1
    with graphs_timed(engine, events):
        in_turn, answers = run(engine, batch, params, tokens)
    third = len(events) // graphs // 3 * graphs
    middle = [begin.elapsed_time(end) for begin, end in events[third:-third]]
    engine._overlap = True
    overlapped, again = run(engine, batch, params, tokens)
    same = sum(one == other for one, other in zip(answers, again, strict=True))
    if same < batch:
        raise ValueError(f"{batch - same} of {batch} answers are others where steps overlap; those have no speed")
    return {
        "graph_ms": round(sum(median(middle[part::graphs]) for part in range(graphs)), 4),
        "in_turn_ms": round(in_turn, 4), "overlapped_ms": round(overlapped, 4), "same_answers": same,
    }  # fmt: skip


def first_token(engine: Engine, tokens: int) -> float:
    """Median milliseconds from a request of that many random tokens to its first one, alone on the card."""
    generator, took = torch.Generator().manual_seed(tokens), []
    for _ in range(PROMPTS):
        prompt = torch.randint(engine._model.config.vocab_size, (tokens,), generator=generator).tolist()
        engine.submit(engine.make_request(prompt, SamplingParams(max_tokens=1, ignore_eos=True)))
        begin = time.perf_counter()
        while engine.busy:
            engine.step()
        took.append(1e3 * (time.perf_counter() - begin))
    return median(took[1:])


def main(words: Sequence[str]) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m tools.engine_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="v4-flash", help="which published configuration (v4-flash)")
    parser.add_argument("--layers", type=int, default=16, help="its first layers (16)")
    parser.add_argument("--batch", type=int, nargs="*", default=[1], help="requests (1)")
    parser.add_argument("--context", type=int, default=1 << 20, help="tokens a request may have (1048576)")
    parser.add_argument("--drafts", type=int, choices=range(4), default=0, help="that each step checks a request (0)")
    parser.add_argument("--prompts", type=int, nargs="*", default=[], metavar="T", help="tokens of requests alone")
    parser.add_argument(
        "--chunked-prefill-size", dest="chunk", type=int, default=CHUNK_TOKENS, help="tokens of a step at most (2048)"
    )
    parser.add_argument("--tokens", type=int, default=200, help="that each request gains (200)")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append the results to FILE")
    args = parser.parse_args(words)
    card = needed_card()
    engine = made(args.config, args.layers, max(args.batch, default=1), args.context, args.drafts, args.chunk)
    told = shlex.join(["python", "-m", "tools.engine_step", *without_files(words)])
    for batch in args.batch:
        for kind, params in KINDS.items():
            found = measured(engine, batch, params, args.tokens)
            about = {"kind": "engine step", "model": args.config, "layers": args.layers, "batch": batch}
            about |= {"drafts": args.drafts, "choice": kind}
            print(f"batch {batch}, {kind}: {', '.join(f'{name} {value}' for name, value in found.items())}", flush=True)
            append(args.jsonl, about | found | {"gpu": card.name, **origin(), "command": told})
    for tokens in args.prompts:
        took = first_token(engine, tokens)
        print(f"prompt of {tokens} tokens: {took:.2f} ms, {1e3 * tokens / took:.0f} tokens/s", flush=True)
        about = {"kind": "first token", "model": args.config, "layers": args.layers, "tokens": tokens}
        found = {"chunk_tokens": args.chunk, "ms": round(took, 3), "tok_s": round(1e3 * tokens / took, 1)}
        append(args.jsonl, about | found | {"gpu": card.name, **origin(), "command": told})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"engine_step: {error}")
