"""`wellhead eval` and `wellhead demo` against a fake engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.llm import FakeLLM, use
from wellhead.cli import demo, evaluate, main, options
from wellhead.evals import families
from wellhead.evals.task import Question, Task, matches_first_line


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WELLHEAD_MODEL", raising=False)


def small_families() -> dict[str, Task]:
    chosen = {name: [Question(f"{name} {i}", str(i)) for i in range(3)] for name in evaluate.FAMILIES}
    chosen["recall"] = [Question("short\nAsk A:", "7"), Question("a much longer text\nAsk B:", "8")]
    return {name: Task(name, asked, matches_first_line, 8, ("\n",)) for name, asked in chosen.items()}


def test_eval_prints_one_line_a_family(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(families, "load_families", small_families)
    use(monkeypatch, FakeLLM(lambda prompt: prompt.split()[-1]))
    assert main(["eval", "--tasks", "sums,capitals"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["sums", "capitals", "6"]
    assert "3/3 right" in out and "6 tokens in" in out and err == ""


def test_eval_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(families, "load_families", small_families)
    use(monkeypatch, FakeLLM(lambda prompt: "0"))
    assert main(["eval", "--json", "-n", "2", "--model", "some/model", "--show-wrong"]) == 0
    out, err = capsys.readouterr()
    read = json.loads(out)
    assert read["model"] == "some/model"
    counts = {task["task"]: (task["right"], task["count"]) for task in read["tasks"]}
    assert counts == {"sums": (1, 2), "capitals": (1, 2), "chinese": (1, 2), "recall": (0, 2)}
    assert "sums: 'sums 1': expected '1', got '0'" in err


@pytest.mark.parametrize("status", [0, 1])
def test_eval_against_another_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """Answers that part where the reference is not sure are ties, and where it is they are an error."""
    monkeypatch.setattr(families, "load_families", small_families)
    use(monkeypatch, FakeLLM(lambda prompt: "ab" if prompt == "sums 1" else "a"))
    reference, asked = FakeLLM(lambda prompt: "ac" if prompt == "sums 1" else "a"), []

    def load_reference(way: str, model: str | None, args: object, max_running: int) -> FakeLLM:
        asked.append((way, max_running))
        return reference

    def logits(ids: list[int]) -> torch.Tensor:
        assert ids == [*b"sums 1a"]
        rows = torch.zeros(len(ids), 128)
        rows[-1, :3] = torch.tensor([-9.0, 9.0, 0.0])
        rows[-1, ord("c")], rows[-1, ord("b")] = 20.0, 10.0 if status else 19.9
        return rows

    reference.logits = logits  # type: ignore[attr-defined]
    monkeypatch.setattr(options, "load_reference", load_reference)
    command = ["eval", "--tasks", "sums,capitals", "--concurrency", "3", "--against", "alone"]
    assert main(command) == status and asked == [("alone", 3)]
    out = capsys.readouterr().out
    assert f"sums       against alone: 2 agree, {1 - status} tie, {status} differ" in out
    assert "capitals   against alone: 3 agree, 0 tie, 0 differ" in out
    assert ("sums 2: differ at token 1, margin" if status else "sums 2: tie at token 1, margin 0.0") in out


def test_eval_gsm8k_reads_its_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"question": f"q{i}?", "answer": f"so #### {i}"} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    llm = use(monkeypatch, FakeLLM(lambda prompt: "it is 2."))
    assert main(["eval", "--tasks", "gsm8k", "--data", str(path), "--shots", "2", "--seed", "1"]) == 0
    assert "1/4 right" in capsys.readouterr().out
    assert all(prompt.count("####") == 2 for prompt in llm.prompts)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--tasks", "sums,nope"], "no task 'nope'"),
        (["--tasks", "gsm8k"], "needs --data FILE"),
        (["--tasks", "gsm8k,sums", "--data", "x.jsonl"], "run alone"),
        (["--data", "x.jsonl"], "is read only by gsm8k and gpqa"),
        (["--tasks", "sums", "--shots", "5"], "--shots belongs to eval --tasks gsm8k, eval --tasks sums does not read"),
        (["--tasks", "gpqa", "--data", "x.csv", "--shots", "3"], "--shots belongs to eval --tasks gsm8k"),
        (["--seed=0"], "--seed belongs to eval --tasks gsm8k and eval --tasks gpqa"),
        (["--tasks", "gpqa", "--data", "absent.csv"], "absent.csv: cannot be read"),
        (["--tasks", "sums", "-n", "0"], "-n must be at least 1, got 0"),
        (["--tasks", "sums", "--concurrency", "0"], "--concurrency must be at least 1, got 0"),
        (["--against", "eager"], "--against eager: --device cpu has no CUDA graphs"),
        (["--against", "eager", "--device", "cuda", "--eager"], "--against eager: --eager has no CUDA graphs"),
    ],
)
def test_eval_refuses_before_it_loads(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    loaded: list[str | None] = []
    use(monkeypatch, FakeLLM(lambda prompt: "x"), loaded)
    assert main(["eval", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("wellhead: error: ") and reason in err and loaded == []


DEMO_ANSWERS = {"15 + 27": " 42", "capital of France": "Paris", "good morning": "早上好", "Ask B": " 8\n"}


@pytest.mark.parametrize("wrong", [None, *DEMO_ANSWERS])
def test_demo_asks_four_questions_and_fails_on_a_wrong_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str | None
) -> None:
    monkeypatch.setattr(families, "load_families", small_families)
    monkeypatch.setenv("COLUMNS", "160")
    answers = {**DEMO_ANSWERS, **({wrong: "[/b] nonsense"} if wrong else {})}
    models: list[str | None] = []
    use(monkeypatch, FakeLLM(lambda p: next(a for key, a in answers.items() if key in p)), models)
    monkeypatch.setenv("WELLHEAD_MODEL", "not/this")
    status = main(["demo"])
    out = capsys.readouterr().out
    assert models == [None], "the demo is about the embedded checkpoint"
    assert "path: cpu reference" in out
    assert "早上好" in out  # as the answer, or as what was expected
    assert status == (1 if wrong else 0)
    assert ("[/b] nonsense (expected" in out) is bool(wrong)
    assert ("1 of 4 answers are wrong" in out) is bool(wrong)


def test_demo_takes_the_longest_recall_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "load_families", small_families)
    shown, question = demo.questions()[-1]
    assert question.answer == "8" and shown == "(long text) Ask B:"
