"""Speculative decoding in kernels: drafts change no answer, and nothing is left of those that were wrong.

Run by test_interpreter.py (one short question), or natively where there is a card (many more, captured).
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fakes.drafting import helped
from wellhead import SamplingParams
from wellhead.engine.core import Engine
from wellhead.engine.device_runner import DeviceRunner
from wellhead.engine.device_speculative_runner import DeviceSpeculativeRunner
from wellhead.engine.runner import MakeRunner, Runner
from wellhead.formats import kv_record
from wellhead.model.batch import Chunk
from wellhead.model.checkpoint import Checkpoint, open_checkpoint, resolve_model
from wellhead.model.config_file import load_config
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_speculative import SpeculativeSteps
from wellhead.model.load import ServedModel, load_model
from wellhead.model.numerics import Numerics
from wellhead.model.split import Split
from wellhead.model.state import LayerState, ModelState, records_per_page
from wellhead.model.stream import load_device_weights
from wellhead.ops.compressor import reference as compressor
from wellhead.testing.checkpoint_files import write_checkpoint
from wellhead.testing.checkpoints import random_checkpoint, tiny_config_dict
from wellhead.text.tokenizer import Tokenizer

ON_CARD = torch.cuda.is_available()
DEVICE = "cuda" if ON_CARD else "cpu"
QUESTIONS = [f"{a} + {b} =" for a in range(3, 30, 5) for b in (8, 41)]
TOKENS = 6 if ON_CARD else 5
PROMPT, STEPS, DRAFTS = (120, 24, 3) if ON_CARD else (2, 2, 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """On a card the embedded one; otherwise random weights, a layer of each kind that compresses."""
    if ON_CARD:
        return open_checkpoint(resolve_model())
    folder = tmp_path_factory.mktemp("speculative") / "model"
    raw = tiny_config_dict(
        num_hidden_layers=2, compress_ratios=[4, 128, 0], num_hash_layers=1, n_routed_experts=4, vocab_size=128,
        index_topk=32, max_position_embeddings=1024, num_attention_heads=2, q_lora_rank=128, index_n_heads=2,
    )  # fmt: skip
    write_checkpoint(folder, raw, random_checkpoint(load_config(raw), seed=4))
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def kernels(checkpoint: Checkpoint) -> DeviceModel:
    weights, _ = load_device_weights(checkpoint, Split(), DEVICE, with_mtp=True)
    return DeviceModel(weights, checkpoint.config, Numerics.named("checkpoint"))


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    if ON_CARD:
        tokenizer = Tokenizer.from_folder(resolve_model())
        return [[tokenizer.bos_id, *tokenizer.encode(question)] for question in QUESTIONS]
    return [torch.randint(2, 128, (3,), generator=torch.Generator().manual_seed(2)).tolist()]


def test_drafts_change_no_answer(checkpoint: Checkpoint, kernels: DeviceModel, prompts: list[list[int]]) -> None:
    """Greedy answers of all questions together, with drafts most of which are right; and beside sampled ones, for which
    the host chooses before the next drafts are made.
    """
    plain = load_model(checkpoint, kernels.numerics)
    speculative = partial(
        DeviceSpeculativeRunner, chunk_tokens=32, speculative_tokens=2, context=512, captured=ON_CARD
    )
    wanted, _ = answers(plain, Runner, prompts)
    if ON_CARD:
        assert answers(kernels, partial(DeviceRunner, chunk_tokens=32, context=512), prompts)[0] == wanted
    found, accepted = answers(kernels, speculative, prompts, 2, wanted)
    assert found == wanted and accepted > len(prompts) // 2
    tokens = TOKENS if ON_CARD else 2
    found, _ = answers(kernels, speculative, prompts, 2, wanted, sampled=True, tokens=tokens)
    assert found == [answer[:tokens] for answer in wanted]


def answers(
    model: ServedModel, make_runner: MakeRunner, prompts: list[list[int]], drafts: int = 0,
    truth: list[list[int]] | None = None, *, sampled: bool = False, tokens: int = TOKENS,
) -> tuple[list[list[int]], int]:  # fmt: skip
    """Greedy tokens of all prompts, and how many of them were accepted drafts."""
    ends = Tokenizer.from_folder(resolve_model()).eos_ids if ON_CARD else frozenset()
    engine = Engine(
        model, None, ends, max_running=3, chunk_tokens=32, num_pages=6, make_runner=make_runner,
        speculative_tokens=drafts,
    )  # fmt: skip
    greedy = SamplingParams(max_tokens=tokens)
    requests = [engine.make_request(ids, greedy) for ids in prompts]
    if truth is not None:
        runner = engine._runner
        known = {tuple(ids): tokens for ids, tokens in zip(prompts, truth, strict=True)}
        runner.propose = helped(runner, known)  # type: ignore[method-assign]
    others = [engine.make_request(prompts[0], SamplingParams(max_tokens=tokens, temperature=1.0, seed=1))] * sampled
    for request in (*others, *requests):
        engine.submit(request)
    while engine.busy:
        engine.step()
    engine.check()
    assert all(request.output for request in others)
    return [list(request.output) for request in requests], sum(request.accepted for request in requests)


def test_nothing_is_left_of_rejected_drafts(kernels: DeviceModel) -> None:
    """The same tokens with wrong drafts in every step and with none: all that later tokens may read is alike, and so is
    what the drafting layer guesses.
    """
    model, vocabulary = kernels, kernels.config.vocab_size
    prompt = torch.randint(3, vocabulary, (PROMPT,), generator=torch.Generator().manual_seed(3)).tolist()
    tokens, states, guesses = [], [], []
    for wrong in (0, DRAFTS):
        state = model.allocate(2, 2)
        step = SpeculativeSteps(DeviceMtp(model), model, state, 512, (1,), DRAFTS, captured=ON_CARD).of(1, 2)
        known, guessed = list(prompt), []
        for low in range(0, PROMPT, step.each):  # what follows within the prompt is said, not chosen
            chunk = Chunk(prompt[low : low + step.each], low, [1, 0], 1, "all")
            step.load([chunk])
            step.verify()
            known += [int(step.best[step.each - 1])] if chunk.end == PROMPT else []
            step.choose([chunk], [known[low + 1 : chunk.end + 1]])
            step.draft()
        for _ in range(STEPS):
            drafts = [(known[-1] + 7 * i) % (vocabulary - 3) + 3 for i in range(1, 1 + wrong)]
            step.load([Chunk([known[-1], *drafts], len(known) - 1, [1, 0], 1, "all")])
            step.verify()
            step.draft()
            known.append(int(step.best[0]))
            guessed.append(step.guesses[0].tolist())
            assert drafts[:1] != known[-1:], "a draft that should be wrong is right; choose others"
        tokens.append(known)
        states.append(state)
        guesses.append(guessed)
    assert tokens[0] == tokens[1] and guesses[0] == guesses[1]
    last = len(tokens[0]) - 1
    for mine, other in zip((*states[0].layers, *states[0].mtp), (*states[1].layers, *states[1].mtp), strict=True):
        for left, right in zip(visible(mine, last), visible(other, last), strict=True):
            torch.testing.assert_close(left, right, rtol=0.02, atol=0.02)
    assert_no_trace(states[0])


def visible(layer: LayerState, last: int) -> list[torch.Tensor]:
    """What tokens at `last` and later may read of the request in slot 1 on pages 1 and 0."""

    def records(cache: torch.Tensor, ratio: int) -> torch.Tensor:
        size, count = records_per_page(ratio), last // max(ratio, 1)
        entry = torch.arange(count, device=cache.device)
        page = torch.where(entry < size, 1, 0)
        return kv_record.read(cache, page * size + entry % size).float()

    found = [records(layer.window, 0)]
    if layer.compressed is not None:
        found.append(records(layer.compressed, layer.ratio))
    for ring in (layer.compressor, layer.index_compressor):
        if ring is not None:
            back = torch.arange(max(0, last + 1 - compressor.pooled_rows(layer.ratio)), last)
            found.append(ring[1, back % compressor.ring_rows(layer.ratio)])
    return found


def assert_no_trace(state: ModelState) -> None:
    """Nothing was written for padding: the other state slot is as it was allocated."""
    for layer in state.layers:
        for ring in (layer.compressor, layer.index_compressor):
            assert ring is None or not bool(ring[0].any())
