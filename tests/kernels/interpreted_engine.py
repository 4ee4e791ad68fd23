"""The engine over the model in kernels gives the answers of the engine over the model in torch.

Run by test_interpreter.py (one short question), or natively where there is a card (many more).
"""

from __future__ import annotations

from functools import partial

import torch

from wellhead import SamplingParams
from wellhead.engine.core import Engine
from wellhead.engine.device_runner import DeviceRunner
from wellhead.engine.request import Request
from wellhead.engine.runner import MakeRunner, Runner
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.device_model import DeviceModel
from wellhead.model.load import ServedModel, load_model
from wellhead.model.numerics import Numerics
from wellhead.model.split import Split
from wellhead.model.stream import load_device_weights
from wellhead.text.tokenizer import Tokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUESTIONS = ["15 + 27 ="] if DEVICE == "cpu" else [f"{a} + {b} =" for a in range(3, 30, 5) for b in (8, 41)]
TOKENS = 2 if DEVICE == "cpu" else 6


def test_both_models_answer_alike() -> None:
    checkpoint, numerics = open_checkpoint(resolve_model()), Numerics.named("checkpoint")
    weights, _ = load_device_weights(checkpoint, Split(), DEVICE)
    kernels = DeviceModel(weights, checkpoint.config, numerics)
    captured = partial(DeviceRunner, chunk_tokens=12, context=512, captured=DEVICE == "cuda")
    wanted = answers(load_model(checkpoint, numerics), Runner)
    found = answers(kernels, captured)
    assert found == wanted
    assert all(len(tokens) >= 1 for tokens in wanted)


def answers(model: ServedModel, make_runner: MakeRunner) -> list[list[int]]:
    """Greedy tokens of all questions, run together in chunks smaller than their prompts."""
    tokenizer = Tokenizer.from_folder(resolve_model())
    engine = Engine(
        model, tokenizer, tokenizer.eos_ids, max_running=2, chunk_tokens=12, num_pages=6, make_runner=make_runner
    )
    params = SamplingParams(max_tokens=TOKENS, temperature=0.0)
    requests: list[Request] = []
    for question in QUESTIONS:
        ids = [tokenizer.bos_id, *tokenizer.encode(question)] if tokenizer.bos_id is not None else []
        requests.append(engine.make_request(ids, params))
        engine.submit(requests[-1])
    while engine.busy:
        engine.step()
    engine.check()
    return [list(request.output) for request in requests]
