"""transformers with our attention and experts, on the embedded checkpoint as it is published; on a CPU or on a card.

On a card by our kernels and over more questions; on a CPU by our references.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wellhead.engine.llm import LLM
from wellhead.evals.families import load_families
from wellhead.evals.task import Task, as_prompt, ask
from wellhead.integrations import report
from wellhead.integrations import transformers as ours
from wellhead.model.config_file import CONFIG_FILE, read_json
from wellhead.model.locate import resolve_model

pytest.importorskip("transformers")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUESTIONS = 10 if DEVICE == "cuda" else 2  # of each family
END = 1  # the id behind an answer


@pytest.fixture(scope="module")
def model() -> Any:
    return ours.load(resolve_model(), DEVICE)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(progress=False)


def test_the_report_names_both_replacements() -> None:
    rows = report("transformers")
    assert [(row.op, row.now, row.why) for row in rows] == [
        ("mla", "transformers.attention", ""), ("moe", "transformers.experts", "")
    ]  # fmt: skip


def test_a_checkpoint_that_is_unpacked_already_is_named(tmp_path: Path) -> None:
    raw = read_json(resolve_model() / CONFIG_FILE)
    del raw["quantization_config"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="no quantization_config; load it with transformers, then `use` it"):
        ours.load(tmp_path)


def test_a_revision_in_a_cache_is_found(tmp_path: Path) -> None:
    """A hub's cache of another folder, as `revision` and `cache_dir` name it; nothing is asked of a network."""
    repository = tmp_path / "models--some--checkpoint"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v2").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(resolve_model().resolve(), target_is_directory=True)
    model = ours.load("some/checkpoint", revision="v2", cache_dir=tmp_path, local_files_only=True)
    assert model.config._attn_implementation == ours.NAME


def test_logits_are_those_of_eager_up_to_the_records_rounding(model: Any, llm: LLM) -> None:
    """Eager attends bf16 records and multiplies unrounded rows; E4M3 keeps 2^-4 of each, as the checkpoint was made."""
    question = load_families()["recall"].questions[0]
    ids = torch.tensor([llm.encode(as_prompt(question))], device=DEVICE)
    with torch.no_grad():
        found = model(ids).logits[0].float()
        model.set_attn_implementation("eager")
        model.set_experts_implementation("eager")
        expected = model(ids).logits[0].float()
        ours.use(model)
    error = float((found - expected).norm() / expected.norm())
    print(f"relative error in norm: {error:.2e}")
    assert 0 < error < 0.05
    assert float((found.argmax(-1) == expected.argmax(-1)).float().mean()) > 0.95


@pytest.mark.parametrize("family", ["sums", "capitals", "chinese", "recall"])
def test_it_scores_as_ours_does(model: Any, llm: LLM, family: str) -> None:
    task = load_families()[family].first(QUESTIONS)
    (result,) = ask(llm, [task])
    right = sum(task.is_right(answer(model, llm, task, place), q.answer) for place, q in enumerate(task.questions))
    print(f"{family}: transformers {right}, ours {result.right} of {result.count}")
    assert right == result.right


def answer(model: Any, llm: LLM, task: Task, place: int) -> str:
    ids = torch.tensor([llm.encode(as_prompt(task.questions[place]))], device=DEVICE)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=task.max_tokens, do_sample=False, pad_token_id=END,
        eos_token_id=END,
    )  # fmt: skip
    made = [token for token in out[0, ids.shape[1] :].tolist() if token != END]
    return str(llm.tokenizer.decode(made))


def test_a_batch_packs_each_row_for_itself() -> None:
    torch.manual_seed(3)
    module = type("Module", (), {"sinks": torch.randn(4, device=DEVICE)})()
    q = torch.randn(2, 4, 3, 512, device=DEVICE).bfloat16()
    kv = torch.randn(2, 1, 90, 512, device=DEVICE).bfloat16()
    mask = torch.where(torch.rand(2, 1, 3, 90, device=DEVICE) < 0.5, 0.0, torch.finfo(torch.bfloat16).min).bfloat16()
    mask[1, :, 0] = torch.finfo(torch.bfloat16).min  # a row that sees nothing
    found, weights = ours.attention(module, q, kv, kv, mask, 512**-0.5)
    assert weights is None and found.shape == (2, 3, 4, 512)
    assert not found[1, 0].any()
    for row in range(2):
        alone, _ = ours.attention(module, q[row, None], kv[row, None], kv[row, None], mask[row, None], 512**-0.5)
        torch.testing.assert_close(alone[0], found[row], rtol=2**-7, atol=2**-7)


def test_experts_are_packed_again_where_either_weight_is_another() -> None:
    gate, down = torch.full((1, 64, 32), 2.0), torch.full((1, 32, 32), 1.0)
    layer = type("Layer", (), {})()
    layer.gate_up_proj, layer.down_proj = gate, down
    first = ours.packed(layer)
    assert ours.packed(layer) is first
    layer.down_proj = 2 * down
    second = ours.packed(layer)
    assert torch.equal(second.w2, first.w2) and torch.equal(second.s2, first.s2 + 1)
    layer.gate_up_proj.mul_(4)
    assert torch.equal(ours.packed(layer).s13, first.s13 + 2)


def test_what_the_op_does_not_do_is_refused() -> None:
    module = type("Module", (), {"sinks": torch.zeros(1)})()
    q = torch.zeros(1, 1, 1, 512).bfloat16()
    mask = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="attention_mask is None"):
        ours.attention(module, q, q, q, None, 1.0)
    with pytest.raises(NotImplementedError, match="a mask that adds to scores"):
        ours.attention(module, q, q, q, mask + 1, 1.0)
    with pytest.raises(NotImplementedError, match=r"dropout=0\.1"):
        ours.attention(module, q, q, q, mask, 1.0, dropout=0.1)
    layer = type("Layer", (), {"gate_up_proj": torch.randn(1, 64, 32), "down_proj": torch.randn(1, 32, 32)})()
    with pytest.raises(ValueError, match="no MXFP4 values"):
        ours.packed(layer)
