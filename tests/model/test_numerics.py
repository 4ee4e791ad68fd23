"""The paged model: any chunking, any batch, any bytes around the cache give a token the same logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from wellhead.model.batch import Batch, Chunk
from wellhead.model.config_file import load_config
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.layers_attention import Ablation
from wellhead.model.numerics import Numerics
from wellhead.model.parameters import load_parameters
from wellhead.model.state import ModelState
from wellhead.testing.checkpoints import random_checkpoint, tiny_config_dict

CONFIG = load_config(tiny_config_dict())
WEIGHTS = load_parameters(random_checkpoint(CONFIG, seed=1), CONFIG, with_mtp=True)
# 330 tokens: 82 C4 entries of which 64 are chosen, 2 C128 entries, two logical pages
IDS = torch.randint(2, CONFIG.vocab_size, (330,), generator=torch.Generator().manual_seed(5)).tolist()
NUMERICS = {
    "exact": Numerics.named("exact"),
    "checkpoint": Numerics.named("checkpoint"),
    "fp4 keys": Numerics.named("checkpoint", index_keys="fp4"),
}


def model(name: str = "checkpoint", **options: object) -> DeepseekV4:
    return DeepseekV4(WEIGHTS, CONFIG, NUMERICS[name], **options)  # type: ignore[arg-type]


def run(
    net: DeepseekV4, ids: Sequence[int], sizes: Sequence[int], state: ModelState | None = None,
    pages: Sequence[int] = (3, 1), slot: int = 1,
) -> torch.Tensor:  # fmt: skip
    """Logits of every token, computed in chunks of `sizes`."""
    state = state if state is not None else net.allocate(4, 3)
    logits, start = [], 0
    for size in sizes:
        batch = Batch.build([Chunk(ids[start : start + size], start, pages, slot, "all")])
        logits.append(net.logits(net.forward(batch, state)[batch.logits_at]))
        start += size
    assert start == len(ids)
    return torch.cat(logits)


def assert_same(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """exact: 1e-4 of the largest logit. Quantised: the same greedy token and KL at most 1e-3, since on a
    machine whose BLAS sums in another order a value may fall on the other side of a rounding step.
    """
    assert expected.isfinite().all() and expected.std() > 0.1
    if name == "exact":
        assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
        return
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    assert float((p.exp() * (p - q)).sum(-1).max()) <= 1e-3


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    return {name: run(model(name), IDS, [len(IDS)]) for name in NUMERICS}


@pytest.mark.parametrize("name", NUMERICS)
def test_chunks_of_any_size_and_single_tokens_equal_one_prefill(name: str, whole: dict) -> None:
    sizes = [1, 2, 3, 5, 117, 1, 1, 70, 56, 1, 1, 1, 1, 1]
    sizes += [len(IDS) - sum(sizes) - 20, *[1] * 20]
    assert_same(name, run(model(name), IDS, sizes), whole[name])


def test_token_by_token_from_the_start_equals_prefill() -> None:
    net, ids = model("exact"), IDS[:132]
    assert_same("exact", run(net, ids, [1] * len(ids)), run(net, ids, [len(ids)]))


def test_quantised_numerics_stay_near_the_exact_ones(whole: dict) -> None:
    exact = whole["exact"].log_softmax(-1)
    for name in ("checkpoint", "fp4 keys"):
        found = whole[name].log_softmax(-1)
        assert not torch.equal(found, exact)
        assert float((exact.exp() * (exact - found)).sum(-1).median()) < 0.1
    assert not torch.equal(whole["checkpoint"], whole["fp4 keys"])


@pytest.mark.parametrize("name", ["exact", "checkpoint"])
def test_mixed_batch_equals_each_request_alone(name: str, whole: dict) -> None:
    """Prefill, a chunk in the middle and a decode step together, on interleaved pages."""
    net = model(name)
    state = net.allocate(6, 3)
    second, third = IDS[::-1][:300], IDS[100:150]
    run(net, second[:299], [299], state, pages=(0, 4), slot=0)
    run(net, third[:20], [20], state, pages=(5,), slot=2)
    chunks = [
        Chunk(IDS, 0, (3, 1), 1, "all"),
        Chunk(second[299:], 299, (0, 4), 0, "all"),
        Chunk(third[20:], 20, (5,), 2, "last"),
    ]
    batch = Batch.build(chunks)
    logits = net.logits(net.forward(batch, state)[batch.logits_at])
    assert logits.shape[0] == 330 + 1 + 1
    assert_same(name, logits[:330], whole[name])
    assert_same(name, logits[330:331], run(net, second, [300])[-1:])
    assert_same(name, logits[331:], run(net, third, [50])[-1:])


@pytest.mark.parametrize("name", ["exact", "checkpoint"])
def test_foreign_pages_and_slots_may_hold_nan(name: str, whole: dict) -> None:
    """Page 0 is where -1 would lead if it were not masked; a slot's old rings belong to someone else."""
    net = model(name)
    state = net.allocate(4, 3)
    for layer in state.layers:
        for field in dataclasses.fields(layer):
            tensor = getattr(layer, field.name)
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else 255)
    assert_same(name, run(net, IDS, [200, 130], state), whole[name])


def test_kv_dtypes_are_the_same_bytes(whole: dict) -> None:
    net = DeepseekV4(WEIGHTS, CONFIG, Numerics.named("checkpoint", kv_dtype="float8_e4m3fn"))
    assert net.allocate(1, 1).layers[0].window.dtype == torch.float8_e4m3fn
    assert torch.equal(run(net, IDS, [330]), whole["checkpoint"])


def test_empty_batch() -> None:
    net = model()
    batch = Batch.build([])
    streams = net.forward(batch, net.allocate(1, 1))
    assert streams.shape == (0, CONFIG.hc_mult, CONFIG.hidden_size)
    assert net.logits(streams[batch.logits_at]).shape == (0, CONFIG.vocab_size)


def test_ablations_change_what_only_compressed_entries_tell(whole: dict) -> None:
    none = run(model(ablation=Ablation.NO_COMPRESSED), IDS, [330])
    random = run(model(ablation="random_selected"), IDS, [330])
    # before the first entry, and while every entry is chosen anyway, nothing differs
    assert torch.equal(none[:3], whole["checkpoint"][:3]) and not torch.equal(none[4:], whole["checkpoint"][4:])
    assert torch.equal(random[:256], whole["checkpoint"][:256])
    assert not torch.equal(random[260:], whole["checkpoint"][260:])
    assert torch.equal(run(model(ablation="random_selected"), IDS, [300, 30]), random)


@pytest.mark.parametrize("name", ["exact", "checkpoint"])
def test_mtp_step_by_step_equals_whole(name: str) -> None:
    net, ids = model(name), IDS[:170]

    def guesses(sizes: Sequence[int]) -> torch.Tensor:
        state, start, logits = net.allocate(4, 3), 0, []
        for size in sizes:
            batch = Batch.build([Chunk(ids[start : start + size], start, (2,), 0, "all")])
            following = torch.tensor(ids[start + 1 : start + size + 1])
            logits.append(net.draft_logits(net.draft(net.forward(batch, state), following, batch, state)))
            start += size
        return torch.cat(logits)

    expected = guesses([169])
    assert expected.shape == (169, CONFIG.vocab_size)
    assert_same(name, guesses([100, 40, *[1] * 29]), expected)
    assert not torch.allclose(expected, run(net, ids, [170])[:169], atol=0.1)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'triton' was asked for and cannot run on CPU only"):
        model(impl="triton")
    with pytest.raises(ValueError, match="'fp16', expected 'checkpoint' or 'exact'"):
        Numerics.named("fp16")
    with pytest.raises(ValueError, match="'bf16', expected 'fp8' or 'fp4'"):
        Numerics.named("exact", index_keys="bf16")
    with pytest.raises(ValueError, match=r"kv_dtype is 'int8'"):
        Numerics.named("exact", kv_dtype="int8")
    without = DeepseekV4({k: v for k, v in WEIGHTS.items() if not k.startswith("mtp.")}, CONFIG, NUMERICS["exact"])
    with pytest.raises(ValueError, match="with_mtp=True"):
        without.draft(torch.zeros(0), torch.zeros(0), Batch.build([]), without.allocate(1, 1))


def test_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ends at token 257 but its 1 pages hold 256"):
        Batch.build([Chunk([5] * 257, 0, (0,), 0)])
    with pytest.raises(ValueError, match=r"state slots \[1, 1\] repeat"):
        Batch.build([Chunk([5], 0, (0,), 1), Chunk([5], 0, (1,), 1)])
    with pytest.raises(ValueError, match=r"embed.*|tensor layers\.0\.attn\.wq_a\.scale is missing"):
        incomplete = ((n, t) for n, t in random_checkpoint(CONFIG) if n != "layers.0.attn.wq_a.scale")
        load_parameters(incomplete, CONFIG, with_mtp=False)
