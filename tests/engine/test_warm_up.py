"""After the warm-up nothing is compiled: steps over any number of tokens want only variants that it has met."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from fakes.recorded_kernels import nothing_runs, recorded
from wellhead.dispatch import capability
from wellhead.dispatch.frozen import CompiledLate, frozen
from wellhead.engine import warm_up
from wellhead.engine.device_runner import DeviceRunner, ladder
from wellhead.engine.device_sampling import DeviceSampler
from wellhead.engine.device_speculative_runner import DeviceSpeculativeRunner
from wellhead.engine.orders import DraftOrders, Orders
from wellhead.engine.request import Request
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.scores import Scores
from wellhead.engine.story import Story
from wellhead.engine.warm_up import row_counts, warm_prompts
from wellhead.model import device_graphs, device_model, device_prompts, device_speculative
from wellhead.model.batch import Chunk
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.choices import uses_of
from wellhead.model.config_file import load_config
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_workspace import Workspace
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import WHOLE
from wellhead.model.published import published_config
from wellhead.model.reach import reaches
from wellhead.model.stream import load_device_weights
from wellhead.ops.bf16_linear import configs as bf16_linear
from wellhead.ops.linear import configs as linear
from wellhead.ops.linear import large_configs
from wellhead.ops.norm_quant.api import plan
from wellhead.ops.output_projection import configs as output_projection

pytest.importorskip("triton")

CHUNK = 600  # several slices of index logits
FEW = range(2, 35)
MANY = (47, 48, 49, 63, 64, 65, 80, 127, 128, 129, 144, 255, 256, 257, 258, 300, 511, 512, 513, 528, 599, 600)


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        nothing_runs(patch)
        best = DeviceModel.best

        def known_ids(self: DeviceModel, logits: torch.Tensor, ws: Workspace, out: torch.Tensor) -> None:
            best(self, logits, ws, out)
            out.zero_()  # nobody wrote ids there

        patch.setattr(DeviceModel, "best", known_ids)
        yield patch


@pytest.fixture(scope="module")
def runner(patched: pytest.MonkeyPatch) -> DeviceRunner:
    """The embedded model on the CPU as a card would run it; its kernels are never launched."""
    patched.setattr(device_model, "here", lambda: capability.features_of(capability.simulated("sm90"), "3.7.1"))
    checkpoint = open_checkpoint(resolve_model())
    weights, _ = load_device_weights(checkpoint, WHOLE, "cpu")
    model = DeviceModel(weights, checkpoint.config, Numerics.named("checkpoint"))
    return DeviceRunner(model, 8, 4, chunk_tokens=CHUNK, context=2048, captured=False)


def warmed(runner: DeviceRunner) -> set[str]:
    with recorded() as found:
        warm_prompts(runner._model, runner._prompts)
    return found


def prefill(runner: DeviceRunner, tokens: int) -> set[str]:
    """Variants of a prefill of one request that wants all logits, or of two with a few finished blocks or none."""
    with recorded() as found:
        runner.compute([Chunk([5] * tokens, 2 * tokens, range(8), 1, logits="all")])
        parts = (tokens - tokens // 2, tokens // 2) if tokens >= 4 else (tokens,)
        runner.compute([Chunk([5] * n, 128, range(4), slot, logits="last") for slot, n in enumerate(parts)])
    return found


def test_no_prefill_wants_a_variant_that_the_warm_up_has_not_met(runner: DeviceRunner) -> None:
    known = warmed(runner)
    assert len(known) > 40
    for tokens in (*FEW, *MANY):
        assert prefill(runner, tokens) <= known, tokens


def test_no_decode_wants_a_variant_that_padding_has_not_met(runner: DeviceRunner) -> None:
    with recorded() as known:
        for step in runner._decode.steps.values():
            step.run()
    for requests in (1, 2, 3, 4):
        with recorded() as found:
            runner.compute([Chunk([7], 127 + slot, range(4), slot) for slot in range(requests)])
        assert found and found <= known, requests


@pytest.fixture(scope="module")
def drafting(patched: pytest.MonkeyPatch) -> DeviceSpeculativeRunner:
    patched.setattr(device_model, "here", lambda: capability.features_of(capability.simulated("sm90"), "3.7.1"))
    checkpoint = open_checkpoint(resolve_model())
    weights, _ = load_device_weights(checkpoint, WHOLE, "cpu", with_mtp=True)
    model = DeviceModel(weights, checkpoint.config, Numerics.named("checkpoint"))
    return DeviceSpeculativeRunner(
        model, 8, 20, chunk_tokens=CHUNK, context=2048, captured=False, speculative_tokens=3
    )


def met(drafting: DeviceSpeculativeRunner) -> set[str]:
    with recorded() as known:
        for step in drafting._steps.steps.values():
            step.verify()
            step.draft()
        drafting._warm_up()
    return known


def drafted(drafting: DeviceSpeculativeRunner, prompts: Sequence[Chunk]) -> set[str]:
    """Variants of a step in which all are greedy, and of one for which the host has chosen."""
    following = [-1 if chunk.logits != "none" else 7 for chunk in prompts]
    with recorded() as found:
        drafting.execute(Orders(prompts, following=following))
        behind = [7 for chunk in prompts for _ in chunk.token_ids]
        drafting.draft(DraftOrders(prompts, behind, range(len(behind))))
    assert found
    return found


def test_no_step_with_drafts_wants_a_variant_that_the_warm_up_has_not_met(drafting: DeviceSpeculativeRunner) -> None:
    known = met(drafting)
    for tokens in (1, *FEW, *MANY):
        prompts = [Chunk([5] * tokens, 2 * tokens, range(8), 1, logits="last")]
        if 2 < tokens <= 20:  # as many requests of a token or two
            prompts = [Chunk([5] * (1 + slot % 2), 0, range(4), slot, logits="none") for slot in range(tokens)]
            last = [Chunk([5], 200, range(4), 1, logits="all"), Chunk([5] * 4, 200, range(4), 2, logits="all")]
            prompts = [*last, *(c for c in prompts if c.state_slot not in (1, 2))]
        assert drafted(drafting, prompts) <= known, tokens
    for requests in range(1, 21):
        assert drafted(drafting, ended(requests)) <= known, requests


def test_drafts_behind_fewer_requests_would_miss_some(
    drafting: DeviceSpeculativeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "row_counts", lambda most: [2])
    missed = drafted(drafting, ended(9)) - met(drafting)
    assert any("few_kernel" in variant for variant in missed)


def ended(requests: int) -> list[Chunk]:
    """The last tokens of as many prompts."""
    return [Chunk([5] * 9, 0, range(4), slot, logits="last") for slot in range(requests)]


def test_no_draw_wants_a_variant_that_the_warm_up_has_not_met(patched: pytest.MonkeyPatch) -> None:
    sampler = DeviceSampler(5, 3072, torch.device("cpu"))
    with recorded() as known:
        sampler.warm_up()
    parts = [torch.zeros(rows, 3072) for rows in (3, 1, 5)]
    scores = Scores(parts, torch.zeros(9, dtype=torch.int64), list(range(9)))
    for top_k, top_p in ((0, 1.0), (7, 1.0), (0, 0.5), (7, 0.5)):
        params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p, seed=3)
        requests = {Request([1], params, 9, torch.Generator()): [row] for row in (0, 3, 4, 8)}
        with recorded() as found:
            sampler.draw(scores, requests)
        assert found and found <= known, (top_k, top_p)


@pytest.mark.parametrize("most", [1, 2, 3, 16, 31, 48, 100, 300, 512, 4096])
def test_every_number_of_rows_has_one_that_stands_for_it(most: int) -> None:
    def kind(rows: int) -> tuple[int, bool]:
        return (rows - 1).bit_length(), rows % 16 == 0

    counts = row_counts(most)
    assert {kind(rows) for rows in range(1, most + 1)} == {kind(count) for count in counts}
    assert counts[0] == 1 and counts[-1] == most and len(counts) <= 3 * most.bit_length()


def test_tiles_follow_the_next_power_of_two_at_full_size() -> None:
    """What makes the sizes complete, for the widths of a published model."""
    uses = uses_of(load_config(published_config("v4-flash")), WHOLE)
    for tokens in range(2, 1025):
        power = 1 << (tokens - 1).bit_length()
        for sizes in uses["linear"]:
            for rounds in (True, False):
                chosen, stands = (linear.choose_config(t, **sizes, rounds=rounds) for t in (tokens, power))
                assert chosen == stands
            assert large_configs.choose_large(tokens, sizes["n"]) == large_configs.choose_large(power, sizes["n"])
        for sizes in uses["bf16_linear"]:
            assert bf16_linear.choose_config(tokens, **sizes) == bf16_linear.choose_config(power, **sizes)
        assert output_projection.choose_config(tokens) == output_projection.choose_config(power)


def launch_norm(d: int) -> None:
    x, codes = torch.zeros(3, d, dtype=torch.bfloat16), torch.zeros(3, d, dtype=torch.float8_e4m3fn)
    plan(d, 1e-6).run(x, None, codes, torch.zeros(3, d // 128, dtype=torch.uint8))


def test_a_compile_in_a_step_names_op_kernel_and_case(patched: pytest.MonkeyPatch) -> None:
    said = r"op 'norm_quant': kernel norm_quant_kernel would be compiled .* x \*bf16:16, weight=None.* D=640"
    with pytest.raises(CompiledLate, match=said), frozen():
        launch_norm(640)
    with recorded() as found:  # Triton is as it was
        launch_norm(640)
    assert len(found) == 1


def test_other_threads_may_compile(patched: pytest.MonkeyPatch) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            launch_norm(768)
        except BaseException as error:
            failed.append(error)

    with recorded() as found, frozen():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert not failed and len(found) == 1


def test_threads_inside_at_once_leave_each_other_alone(patched: pytest.MonkeyPatch) -> None:
    """Two engines in one process: this thread enters first and leaves first."""
    entered, left = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        with frozen():
            entered.set()
            left.wait(20)
            try:
                launch_norm(896)
            except CompiledLate as error:
                failed.append(error)

    thread = threading.Thread(target=work)
    with frozen():
        thread.start()
        assert entered.wait(20)
    left.set()
    thread.join()
    assert len(failed) == 1  # the other one's step was still watched
    with recorded() as found:
        launch_norm(896)  # and nothing of it is left behind
    assert len(found) == 1


def test_a_step_of_the_runner_is_frozen(runner: DeviceRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_compiles", True)
    with pytest.raises(CompiledLate, match=r"would be compiled in the middle of a step"):
        runner.compute([Chunk([5] * 9, 0, range(4), 1)])


def test_phases_are_told_in_order(runner: DeviceRunner) -> None:
    said = io.StringIO()
    DeviceRunner(runner._model, 2, 2, chunk_tokens=4, context=512, captured=False, phase=Story(said).phase)
    told = [line[2:40].rstrip() for line in said.getvalue().splitlines()]
    assert told == [
        "making caches", "compiling decodes of 1 to 2 requests", "compiling prompts of up to 4 tokens"
    ]  # fmt: skip


@pytest.mark.parametrize("drafts", [0, 2])
def test_decodes_beyond_the_largest_graph_are_launched_one_by_one(runner: DeviceRunner, drafts: int) -> None:
    """A capture is stood in for by the launches themselves."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (device_graphs, device_prompts, device_speculative):
            patch.setattr(module, "capture", lambda parts, pool: list(parts))
        patch.setattr(torch.cuda, "graph_pool_handle", object)
        sizes = {"chunk_tokens": 4, "context": 512, "largest_graph": 3}
        if drafts:
            weights, _ = load_device_weights(open_checkpoint(resolve_model()), WHOLE, "cpu", with_mtp=True)
            model = DeviceModel(weights, runner._model.config, runner._model.numerics)
            own: DeviceRunner = DeviceSpeculativeRunner(model, 16, 8, speculative_tokens=drafts, **sizes)
        else:
            own = DeviceRunner(runner._model, 16, 8, **sizes)
        steps = own._steps.steps if isinstance(own, DeviceSpeculativeRunner) else own._decode.steps
        assert own.graph_sizes == [1, 2, 3]
        assert {size: step.captured for (size, _), step in steps.items()} == {
            1: True, 2: True, 3: True, 4: False, 8: False
        }  # fmt: skip
        misses = []
        for requests in (3, 4, 1, 8):
            own.compute([Chunk([5], 300, (2 * row, 2 * row + 1), row) for row in range(requests)])
            misses.append(own.graph_misses)
        assert misses == [0, 1, 1, 2]


def test_short_requests_take_steps_planned_for_short_ones(runner: DeviceRunner) -> None:
    assert reaches(16383) == [16383] and reaches(16384) == [8192, 16384] and reaches(1 << 20)[1:3] == [32768, 262144]
    own = DeviceRunner(runner._model, 70, 2, chunk_tokens=4, context=16384, captured=False)
    assert list(own._decode.steps) == [(2, 64), (2, 32), (1, 64), (1, 32)]
    ran: list[tuple[int, int]] = []
    for key, step in own._decode.steps.items():
        object.__setattr__(step, "run", lambda key=key: ran.append(key))
    for lengths in ([4], [32], [33], [4, 64], [2, 2]):
        own.compute([Chunk([5], 2, range(length), slot) for slot, length in enumerate(lengths)])
    assert ran == [(1, 32), (1, 32), (1, 64), (2, 64), (2, 32)]
    with pytest.raises(ValueError, match="3 requests of up to 4 pages in a decode step; the ladder ends at 2 of 64"):
        own._decode.of(3, 4)


def test_the_ladder() -> None:
    assert ladder(1) == [1] and ladder(12) == [1, 2, 4, 8, 12] and ladder(16) == [1, 2, 4, 8, 16]
    assert ladder(12, 6) == [1, 2, 4, 6, 8, 12] and ladder(12, 40) == [1, 2, 4, 8, 12]
