"""SGLang's whole model on a CPU: its loader, `ModelRunner`, pools, metadata, prefill and decode with the embedded
checkpoint, our ops placed by its plugin loader; greedy answers against ours.

    TRITON_INTERPRET=1 python -m pytest -s -p no:xdist tests/integrations/sglang_model.py      # about two minutes

It is the path of SGLang's one-batch benchmark: no scheduler, no HTTP, no graphs. `sglang_standins` replaces what exists
in CUDA only; our own ops run as references (the interpreter takes minutes a token).
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import types
from collections import Counter
from typing import Any

import pytest
import torch

from integrations import sglang_import, sglang_standins
from wellhead.engine.llm import LLM, SamplingParams
from wellhead.evals.families import load_families
from wellhead.evals.task import as_prompt
from wellhead.integrations import plans, sglang, targets
from wellhead.model.locate import resolve_model

END = 1
OPS = ("sparse_mla", "indexer", "topk", "moe", "hyper_connection", "linear", "norm_quant", "routing")
QUESTIONS = 3  # of each family

called: Counter[str] = Counter()
"""How often SGLang called what stands in for a target of its."""


@pytest.fixture(scope="module")
def bench() -> Any:
    """(SGLang's one-batch module, its runner over the loaded model, its tokenizer)."""
    if os.environ.get("TRITON_INTERPRET") != "1" or torch.cuda.is_available():
        pytest.skip("on a CPU, with SGLang's Triton kernels interpreted")
    for name in ("FP8_WO_A_GEMM", "USE_TILELANG_MHC_PRE"):
        os.environ.setdefault(f"SGLANG_OPT_{name}", "0")  # SM120's defaults, read when SGLang is imported
    _count_calls()
    sglang_import.load()
    plans.force(**dict.fromkeys(OPS, "reference"))
    from sglang.benchmark import one_batch
    from sglang.srt.layers.attention import deepseek_v4_backend
    from sglang.srt.models import deepseek_v4
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import PortArgs, ServerArgs

    for path, ours in sglang_standins.STANDINS.items():
        HookRegistry.register(path, ours, HookType.REPLACE)
    HookRegistry.apply_hooks()
    deepseek_v4_backend.create_paged_compressor_data = lambda *given, **named: None
    _believe_in_a_device(deepseek_v4)
    arguments = ServerArgs(
        model_path=str(resolve_model()), device="cpu", disable_cuda_graph=True, disable_radix_cache=True,
        mem_fraction_static=0.5, max_total_tokens=16384, max_running_requests=2, dtype="bfloat16",
        disable_overlap_schedule=True, chunked_prefill_size=-1, attention_backend="dsv4",
        # SGLang takes 512 or 1024: all of up to 122 entries, where ours chooses 64
        json_model_override_args='{"index_topk": 512}',
    )  # fmt: skip
    arguments.resolve_once()
    ports = PortArgs.init_new(arguments)
    rank = one_batch.spawn_world_rank(arguments, tp_rank=0, pp_rank=0)
    one_batch.publish(arguments, role="scheduler", ranks=one_batch.SpawnRanks(world_rank=rank, gpu_id=0))
    one_batch._init_process_global_configs()
    return (one_batch, *one_batch.load_model(arguments, ports, 0, 0))


def _count_calls() -> None:
    """Before the plugin takes our functions, each is wrapped in one that counts."""

    def counted(name: str, ours: Any, *given: Any, **named: Any) -> Any:
        called[name] += 1
        return ours(*given, **named)

    for target in sglang.TARGETS:
        module, name = target.ours.split(":")
        ours = targets.resolve(module, name)
        wrapper = functools.wraps(ours)(functools.partial(counted, name, ours))
        setattr(importlib.import_module(module), name, wrapper)


def _believe_in_a_device(model: Any) -> None:
    """The rotary tables as on a card: SGLang's CPU ones want its CPU engine."""
    from sglang.srt.layers.rotary_embedding import factory
    from sglang.srt.utils import common

    for name in ("vllm", "vllm._custom_ops"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["vllm._custom_ops"].rotary_embedding = None  # type: ignore[attr-defined]
    model.get_rope_wrapper = lambda *given, device=None, **named: factory.get_rope(*given, **named)
    asks = common.get_device
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("sglang") and vars(module).get("get_device") is asks:
            module.get_device = lambda *_: "cpu"


def greedy(bench: Any, ids: list[int], most: int) -> list[int]:
    """Generated ids in front of the end, by SGLang's prefill and decode."""
    one_batch, runner, _ = bench
    runner.clear()
    sglang_standins.tokens.clear()

    class Given:
        def encode(self, *_: Any, **__: Any) -> list[int]:
            return [*ids, END]

    _, requests = one_batch.prepare_inputs_for_correctness_test(
        types.SimpleNamespace(cut_len=len(ids), batch_size=[1]), Given(), ["given"]
    )
    following, _, batch = runner.extend(requests)
    made = [int(following[0])]
    while len(made) < most and made[-1] != END:
        following, _ = runner.decode(following, batch)
        made.append(int(following[0]))
    return [token for token in made if token != END]


@pytest.mark.parametrize("family", ["sums", "capitals", "chinese", "recall"])
def test_greedy_answers_are_ours(bench: Any, family: str) -> None:
    task, llm = load_families()[family], LLM(progress=False)
    for question in task.questions[:QUESTIONS]:
        ids = llm.encode(as_prompt(question))
        (ours,) = llm.generate([as_prompt(question)], SamplingParams(max_tokens=task.max_tokens, temperature=0.0))
        found = greedy(bench, ids, task.max_tokens)
        print(f"{family}: {llm.tokenizer.decode(found)!r}, ours {ours.text!r}, expected {question.answer!r}")
        assert found == [token for token in ours.token_ids if token != END]


def test_sglang_called_every_replacement(bench: Any) -> None:
    """A function that is hooked but no longer called would leave SGLang's own in its place, with the same answers."""
    print(dict(called))
    assert {target.ours.partition(":")[2] for target in sglang.TARGETS} == set(called)
