"""One rank of two over the embedded checkpoint: rank 0 writes what it answered and the logits as JSON.

python rank.py RANK WORLD RENDEZVOUS OUTPUT
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fakes.drafting import helped
from fakes.following import PlaceSampler
from fakes.host_sampler import HostSampler
from wellhead.engine import loading
from wellhead.engine.llm import LLM
from wellhead.engine.parallel import dismiss, follow
from wellhead.engine.sampling_params import SamplingParams
from wellhead.model.checkpoint import Checkpoint, open_checkpoint, resolve_model
from wellhead.model.device_model import DeviceModel
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.split import Split
from wellhead.model.stream import load_device_weights

PROMPTS = ["15 + 27 =", "103 + 244 =", "The capital of France is", "One, two, three,"]
# "device": the model and runner of a card, in torch references; device "cpu" would be the CPU's own.
WAYS: dict[str, dict[str, Any]] = {"": {}, "device": {"device": "cpu:0", "captured": False}}
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)


def teacher_forced() -> list[int]:
    """A sequence long enough that compressed entries are chosen among."""
    return torch.randint(3, 3000, (330,), generator=torch.Generator().manual_seed(5)).tolist()


def answers(llm: LLM) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy tokens of the prompts asked together, then of a long one twice, the second time from the prefix cache; and
    the last 40 rows of the sequence's logits.
    """
    logits = llm.logits(teacher_forced())[-40:]
    done = llm.generate(PROMPTS, GREEDY)
    for _ in range(2):
        done += llm.generate([teacher_forced()[:300]], GREEDY)
    assert llm.engine.counters.prefix_hit_tokens == 256
    return [one.token_ids for one in done], logits


def with_drafts(llm: LLM) -> tuple[list[list[int]], int]:
    """The same tokens again, beside a sampled answer, with drafts most of which are right; how many were accepted."""
    before = llm.engine.counters.accepted_tokens
    truth = {tuple(llm.encode(p)): one.token_ids for p, one in zip(PROMPTS, llm.generate(PROMPTS, GREEDY), strict=True)}
    runner = llm.engine._runner
    runner.propose = helped(runner, truth)  # type: ignore[method-assign]
    sampled = replace(GREEDY, temperature=1.0, seed=3)
    done = llm.generate([*PROMPTS, PROMPTS[0]], [GREEDY] * len(PROMPTS) + [sampled])
    return [one.token_ids for one in done[:-1]], llm.engine.counters.accepted_tokens - before


def check_overlap(llm: LLM, drafts: bool) -> None:
    """Tokens that rank 0 draws reach the others before it has read them: the answers are those of steps in turn. With
    drafts they are wanted in turn as well, to accept by.
    """
    engine, found = llm.engine, []
    runner: Any = engine._runner
    runner.sampler = PlaceSampler() if drafts else HostSampler()
    (share, shared), (launch, ahead) = (runner._group.share, []), (runner.launch, [])
    runner._group.share = lambda chosen: shared.append(1) or share(chosen)
    runner.launch = lambda work: ahead.extend(item.ahead > 0 for item in work) or launch(work)
    params = [replace(GREEDY, temperature=float(n % 2), seed=n, max_tokens=16) for n in range(len(PROMPTS))]
    for engine._overlap in (False, True):
        found.append([one.token_ids for one in llm.generate(PROMPTS, params)])
        assert any(ahead) == engine._overlap and bool(shared) == (engine._overlap or drafts)
    assert found[0] == found[1]
    runner.sampler, runner._group.share, runner.launch = None, share, launch


def load(numerics: str, split: Split = WHOLE, group: Group = ALONE, speculative_tokens: int = 0, way: str = "") -> LLM:
    return LLM(
        progress=False, numerics=numerics, num_pages=8, chunk_tokens=200, split=split, group=group,
        speculative_tokens=speculative_tokens, **WAYS[way],
    )  # fmt: skip


def on_the_cpu(
    checkpoint: Checkpoint, numerics: Numerics, device: str, *, with_mtp: bool, split: Split, group: Group, **_: Any
) -> DeviceModel:
    """`load_device_model`, without a card."""
    weights, _ = load_device_weights(checkpoint, split, device, with_mtp=with_mtp)
    return DeviceModel(weights, checkpoint.config, numerics, impl="reference", reduce=group.reduce, gather=group.gather)


def main(rank: int, world: int, rendezvous: str, output: Path) -> None:
    torch.set_num_threads(1)
    loading.load_device_model = on_the_cpu
    group = Group.join(rendezvous, rank, world)
    found = {}
    long = list(range(10_000)) if rank == 0 else None
    assert group.broadcast(long) == list(range(10_000))
    for experts, numerics, guesses, way in (
        ("width", "exact", 0, ""), ("width", "exact", 3, ""), ("width", "checkpoint", 0, ""),
        ("expert", "checkpoint", 0, ""), ("expert", "checkpoint", 0, "device"), ("width", "checkpoint", 3, "device"),
    ):  # fmt: skip
        split = Split(rank, world, experts)  # type: ignore[arg-type]
        if rank:
            checkpoint = open_checkpoint(resolve_model())
            model, make_runner = loading.load_with_runner(
                checkpoint, Numerics.named(numerics), split=split, group=group, speculative_tokens=guesses,
                chunk_tokens=200, **WAYS[way],
            )  # fmt: skip
            follow(group, make_runner, model)
        else:
            llm = load(numerics, split, group, guesses, way)
            tokens, logits = answers(llm)
            if way == "device":
                check_overlap(llm, guesses > 0)
            found[f"{experts} {numerics} {guesses} {way}".strip()] = {"tokens": tokens, "logits": logits.tolist()}
            if guesses:
                again, accepted = with_drafts(llm)
                assert again == tokens[: len(PROMPTS)]
                assert accepted > len(PROMPTS)
            dismiss(group)
    if rank == 0:
        output.write_text(json.dumps(found))
    group.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
