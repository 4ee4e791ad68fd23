"""What the device model runs, why, and that its references compute the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wellhead.dispatch import capability
from wellhead.dispatch.choose import NoImplementation
from wellhead.dispatch.spec import REFERENCE
from wellhead.model import device_model, load
from wellhead.model.batch import Batch, Chunk
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.choices import choose_ops, uses_of
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import load_config
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.device_graphs import DecodeSteps
from wellhead.model.device_kernels import functions_of
from wellhead.model.device_model import DeviceModel, chosen
from wellhead.model.device_prompts import PromptSteps
from wellhead.model.device_workspace import Workspace
from wellhead.model.load import load_model
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import WHOLE
from wellhead.model.published import published_config
from wellhead.model.stream import load_device_weights
from wellhead.ops import registry

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SERVED = Numerics.named("checkpoint")


@pytest.fixture(scope="module")
def flash() -> ModelConfig:
    return load_config(published_config("v4-flash"))


def test_every_op_has_a_choice_with_its_reason(flash: ModelConfig) -> None:
    features = capability.features_of(capability.simulated("sm120"), "3.7.1")
    rows = choose_ops(flash, WHOLE, features).rows()
    assert {op for op, _, _ in rows} == set(registry.OPS)
    assert [impl for op, impl, _ in rows if op == "moe"] == ["triton", "triton-w4a8"]
    (why,) = (why for _, impl, why in rows if impl == "triton-w4a8")
    assert "from 65 tokens on" in why and "block_scaled_mma compiled" in why
    (why,) = (why for op, impl, why in rows if (op, impl) == ("moe", "triton"))
    assert "up to 64 tokens" in why and "not triton-w4a8: tokens=64" in why


def test_a_forced_implementation_is_taken_or_refused_with_the_reason(flash: ModelConfig) -> None:
    def moe(arch: str, name: str) -> list[str]:
        features = capability.features_of(capability.simulated(arch), "3.7.1")
        return [impl for op, impl, _ in choose_ops(flash, WHOLE, features, {"moe": name}).rows() if op == "moe"]

    assert moe("sm90", "triton-w4a16") == ["triton-w4a16"]
    assert moe("sm90", "auto") == ["triton"]
    assert moe("sm120", "triton") == ["triton"]
    assert moe("sm120", "triton-w4a8") == ["triton", "triton-w4a8"]
    assert moe("sm120", REFERENCE) == [REFERENCE]
    with pytest.raises(
        NoImplementation, match=r"'triton-w4a8' was asked for and cannot run on .*sm90.*block_scaled_mma"
    ):
        moe("sm90", "triton-w4a8")


@pytest.mark.parametrize(
    ("impl", "error", "said"),
    [
        ({"moo": "triton"}, ValueError, "no op 'moo'; the nearest is moe of addresses, .*sampling"),
        ({"moe": "cutlass"}, ValueError, "no implementation 'cutlass'; there are triton-w4a8, triton, triton-w4a16"),
        ("cutlass", ValueError, "implementation 'cutlass' does not exist; there are auto, reference, triton"),
    ],
)
def test_what_does_not_exist_is_named(flash: ModelConfig, impl: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        choose_ops(flash, WHOLE, capability.features_of(capability.simulated("sm90"), "3.7.1"), impl)


def test_no_graph_holds_a_reference(flash: ModelConfig) -> None:
    features = capability.features_of(capability.simulated("sm90"), "3.7.1")
    choose_ops(flash, WHOLE, features).check_captured()
    choose_ops(flash, WHOLE, features, {"sampling": REFERENCE}).check_captured()  # drawn on the host, behind the graph
    with pytest.raises(ValueError, match=r"--impl topk=reference: .* add --eager"):
        choose_ops(flash, WHOLE, features, {"topk": REFERENCE}).check_captured()


def test_an_op_without_a_reference_on_the_device_is_named(monkeypatch: pytest.MonkeyPatch, flash: ModelConfig) -> None:
    from wellhead.model.device_reference import REFERENCES

    monkeypatch.delitem(REFERENCES, "rope")
    monkeypatch.setattr(device_model, "here", lambda: capability.features_of(capability.simulated("sm90"), "3.7.1"))
    with pytest.raises(NotImplementedError, match=r"--impl rope=reference: on a device there is one for .*linear"):
        chosen(flash, SERVED, WHOLE, {"rope": REFERENCE})


def test_the_choice_is_made_of_the_sizes_that_are_planned(flash: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product that a workspace plans was asked about."""
    import wellhead.model.device_workspace as workspace

    planned: dict[str, set[tuple[int, ...]]] = {}

    def recording(op: str, impl: str) -> Any:
        functions = functions_of(op, impl)
        if op not in ("linear", "bf16_linear", "norm_quant", "rope", "kv_store"):
            return functions

        class Recorded:
            @staticmethod
            def plan(*sizes: Any, **options: Any) -> Any:
                planned.setdefault(op, set()).add(sizes)
                return functions.plan(*sizes, **options)

        return Recorded

    monkeypatch.setattr(workspace, "functions_of", recording)
    choices = choose_ops(flash, WHOLE, capability.features_of(capability.simulated("sm90"), "3.7.1"))
    Workspace(flash, SERVED, WHOLE, choices, 2, 4, chunked=False, device="cpu")
    uses = {op: [tuple(sizes.values()) for sizes in every] for op, every in uses_of(flash, WHOLE).items()}
    assert planned["linear"] == set(uses["linear"])
    assert {(d,) for d, _ in planned["norm_quant"]} == set(uses["norm_quant"])
    every = {(n if isinstance(n, int) else sum(n), k) for n, k in planned["bf16_linear"]}
    assert every == set(uses["bf16_linear"])
    assert planned["rope"] == set(uses["rope"])
    assert {sizes[:2] for sizes in planned["kv_store"]} == set(uses["kv_store"])


@pytest.mark.parametrize(
    ("name", "arch", "kind"),
    [("auto", "sm120", "native"), ("auto", "sm90", "bf16"), ("triton-w4a16", "sm120", "w4a16")],
)
def test_the_choice_decides_the_plan_of_the_experts(flash: ModelConfig, name: str, arch: str, kind: str) -> None:
    choices = choose_ops(flash, WHOLE, capability.features_of(capability.simulated(arch), "3.7.1"), {"moe": name})
    few, many = (Workspace(flash, SERVED, WHOLE, choices, t, 1, chunked=True, device="meta") for t in (16, 512))
    product = many.experts.product
    assert (product.native, product.rounded) == (kind == "native", kind != "w4a16")
    assert type(few.experts).__name__ == ("Mxfp4Prefill" if kind == "w4a16" else "Mxfp4Experts")
    u = torch.empty(16, flash.hidden_size, dtype=torch.bfloat16, device="meta")
    x, scale = few.expert_rows(u)
    assert (x is u, scale is None) == (kind == "w4a16",) * 2


@pytest.mark.parametrize("keys", ["fp8", "fp4"])
def test_references_on_the_device_compute_the_model(keys: str) -> None:
    """All ops in torch behind the device model's plans: the model in torch, up to sums in another order on a card."""
    checkpoint, numerics = open_checkpoint(resolve_model()), Numerics.named("checkpoint", keys)
    reference = load_model(checkpoint, numerics)
    assert isinstance(reference, DeepseekV4)
    weights, _ = load_device_weights(checkpoint, WHOLE, DEVICE)
    model = DeviceModel(weights, checkpoint.config, numerics, impl=REFERENCE)
    assert {impl for _, impl, _ in model.describe()} == {REFERENCE}
    states = reference.allocate(2, 3), model.allocate(2, 3)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, checkpoint.config.vocab_size, (143,), generator=generator).tolist()
    prompts = PromptSteps(model, states[1], 140, 512, 3, captured=False)
    decode = DecodeSteps(model, states[1], 512, (2,), captured=False)
    for low, high in ((0, 60), (60, 140), (140, 141), (141, 142)):
        chunk = Chunk(tokens[low:high], low, [1, 0], 1, logits="all")
        batch = Batch.build([chunk])
        expected = reference.logits(reference.forward(batch, states[0]))
        if high - low > 1:
            found = model.logits(prompts.streams[: high - low], prompts.run([chunk]).workspace)
        else:  # beside a row of padding
            step = decode.of(1, 2)
            step.inputs.page_table.fill_(0)  # what a longer request left behind its own pages is not looked at
            step.inputs.window_table.fill_(0)
            step.load(Batch.build([Chunk(tokens[low:high], low, [1], 1)], pad_to=2))
            step.run()
            found = step.logits[:1]
        error = float((found.cpu() - expected).norm() / expected.norm())
        assert error <= (0.0 if DEVICE == "cpu" else 0.02), (low, high, error)


@pytest.mark.parametrize("first_expert", [0, 4])
def test_lists_in_torch_are_those_that_the_kernels_read(first_expert: int) -> None:
    from wellhead.model.device_reference.experts import Routings

    experts, block = 4, 4
    ids = torch.randint(-1, 8, (9, 2), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    lists = Routings.plan_lists(9, 2, experts, block, first_expert=first_expert, device="cpu")
    for rows in (ids, ids[:3], ids[:0]):  # what a longer list left behind is gone
        lists.run(rows)
        slots: list[int] = []
        owners: list[int] = []
        for expert in range(experts):
            mine = [at for at, of in enumerate(rows.flatten().tolist()) if of == expert + first_expert]
            assert lists.counts[expert] == len(mine) and lists.offsets[expert] == len(slots)
            slots += mine + [-1] * (-len(mine) % block)
            owners += [expert] * (-(-len(mine) // block))
        assert lists.slots.tolist() == slots + [-1] * (len(lists.slots) - len(slots))
        assert lists.block_expert.tolist() == owners + [-1] * (len(lists.block_expert) - len(owners))
        assert lists.offsets[-1] == len(slots)


@pytest.mark.parametrize(
    ("numerics", "options", "error", "said"),
    [
        ("checkpoint", {"impl": {"rope": REFERENCE}, "captured": True}, ValueError, "add --eager"),
        ("checkpoint", {"impl": {"moe": "triton-w4a8"}}, NoImplementation, "block_scaled_mma absent"),
        ("exact", {}, ValueError, "numerics is 'exact'"),
        ("checkpoint", {"impl": {"rope": REFERENCE}}, LookupError, "weights are read"),
    ],
)
def test_what_cannot_run_is_said_before_weights_are_read(
    flash: ModelConfig, monkeypatch: pytest.MonkeyPatch, numerics: str, options: Any, error: type[Exception], said: str
) -> None:
    def read(*given: Any, **named: Any) -> Any:
        raise LookupError("weights are read")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device_model, "here", lambda: capability.features_of(capability.simulated("sm90"), "3.7.1"))
    monkeypatch.setattr(load, "load_device_weights", read)
    checkpoint: Any = SimpleNamespace(config=flash)
    with pytest.raises(error, match=said):
        load.load_device_model(checkpoint, Numerics.named(numerics), "cuda", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"impl": {"topk": "triton"}}, "asked for and cannot run on CPU only"), ({"ablation": "half"}, "half")],
)
def test_on_the_cpu_too(flash: ModelConfig, monkeypatch: pytest.MonkeyPatch, options: Any, said: str) -> None:
    def read(*given: Any, **named: Any) -> Any:
        raise LookupError("weights are read")

    monkeypatch.setattr(load, "iter_tensors", read)
    checkpoint: Any = SimpleNamespace(config=flash, tensors={})
    with pytest.raises(ValueError, match=said):
        load.load_model(checkpoint, SERVED, **options)
