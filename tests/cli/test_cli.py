"""The command line against a fake engine: what is printed where, exit statuses, and errors in one line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import wellhead
from fakes.llm import FakeLLM
from wellhead.cli import EXIT_ERROR, chat, demo, evaluate, main, options, parser
from wellhead.cli.measured import path_taken, stream_answer
from wellhead.engine.request import RequestError
from wellhead.engine.sampling_params import SamplingParams
from wellhead.evals import families
from wellhead.evals.task import Question, Task, matches_first_line


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WELLHEAD_MODEL", raising=False)


@pytest.fixture
def loaded() -> list[str | None]:
    """The models that were asked for."""
    return []


def use(monkeypatch: pytest.MonkeyPatch, llm: FakeLLM, models: list[str | None] | None = None) -> FakeLLM:
    def load(model: str | None, args: object = None, **more: object) -> FakeLLM:
        if models is not None:
            models.append(model)
        return llm

    monkeypatch.setattr(options, "load", load)
    return llm


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_generate_streams_to_stdout_and_sums_up_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loaded: list[str | None]
) -> None:
    llm = use(monkeypatch, FakeLLM(lambda prompt: " 42\nand more"), loaded)
    status = main(
        ["generate", "15 + 27 =", "--stop", "\n", "--max-tokens", "9", "--temperature", "0.5"]
        + ["--top-p", "0.9", "--top-k", "7", "--seed", "3", "--model", "some/model"]
    )
    out, err = capsys.readouterr()
    assert (status, out) == (0, " 42\n")
    assert err.count("\n") == 1
    assert "9 prompt + 3 new tokens" in err and "ended by stop; path: cpu reference" in err
    expected = SamplingParams(max_tokens=9, temperature=0.5, top_p=0.9, top_k=7, seed=3, stop=("\n",))
    assert llm.params == [expected] and llm.prompts == ["15 + 27 ="] and loaded == ["some/model"]


def test_model_falls_back_to_the_variable_then_to_the_embedded_one(
    monkeypatch: pytest.MonkeyPatch, loaded: list[str | None]
) -> None:
    use(monkeypatch, FakeLLM(lambda prompt: "x"), loaded)
    main(["generate", "a"])
    monkeypatch.setenv("WELLHEAD_MODEL", "from/variable")
    main(["generate", "a"])
    main(["generate", "a", "--model", "from/option"])
    assert loaded == [None, "from/variable", "from/option"]


def test_generate_reads_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = use(monkeypatch, FakeLLM(lambda prompt: "x"))
    type_in(monkeypatch, "two\nlines")
    assert main(["generate", "-"]) == 0
    assert llm.prompts == ["two\nlines"]


@pytest.mark.parametrize("error", [ValueError("config.json: no key 'x'"), FileNotFoundError(2, "gone", "m")])
def test_an_error_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def load(model: str | None, args: object = None, **more: object) -> FakeLLM:
        raise error

    monkeypatch.setattr(options, "load", load)
    assert main(["generate", "a"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"wellhead: error: {error}\n")
    with pytest.raises(type(error)):
        main(["generate", "a", "--debug"])


def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WELLHEAD_MODLE", "x")
    assert main(["generate", "a"]) == 2
    assert "WELLHEAD_MODLE" in capsys.readouterr().err


def test_ctrl_c_while_generating_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeLLM(lambda prompt: "abc", interrupt_after=1))
    assert main(["generate", "a"]) == 130


def test_chat_keeps_the_conversation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    llm = use(monkeypatch, FakeLLM(lambda prompt: "Rome" if "Italy" in prompt else "Paris"))
    type_in(monkeypatch, "France?\n\nItaly?\n/nope\n/reset\nFrance again?\n/exit\nnever\n")
    assert main(["chat", "--system", "Be brief."]) == 0
    out, err = capsys.readouterr()
    assert out == "Paris\nRome\nParis\n"
    assert err == "unknown command /nope; there are /reset and /exit\n"
    assert len(llm.prompts) == 3 and all("Be brief." in prompt for prompt in llm.prompts)
    first, second, third = llm.prompts
    assert "France?" in first
    assert second.index("France?") < second.index("Paris") < second.index("Italy?")
    assert "France again?" in third and "Italy?" not in third


def test_chat_thinking_drops_earlier_reasoning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = use(monkeypatch, FakeLLM(lambda prompt: "because of history</think>Paris"))
    type_in(monkeypatch, "France?\nSure?\n")
    assert main(["chat", "--thinking"]) == 0
    assert "Paris" in llm.prompts[1] and "because of history" not in llm.prompts[1]
    assert capsys.readouterr().out == "because of history\nParis\n" * 2  # the markup itself is not shown


def test_ctrl_c_stops_the_answer_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = use(monkeypatch, FakeLLM(lambda prompt: "Paris", interrupt_after=3))
    type_in(monkeypatch, "France?\nGo on.\n")
    assert main(["chat"]) == 0
    assert capsys.readouterr().out == "Par\nPar\n"
    assert "Par" in llm.prompts[1]
    # Interrupted before a word was said: the turn is forgotten.
    llm.interrupt_after = 0
    assert chat._exchange(llm, [], "Hello?", SamplingParams(), False) == []  # type: ignore[arg-type]


def test_a_malformed_answer_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = "<｜end▁of▁sentence｜>text after the end"
    llm = use(monkeypatch, FakeLLM(lambda prompt: "fine" if "Second" in prompt else broken))
    type_in(monkeypatch, "First?\nSecond?\n")
    assert main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("fine\n") and err.startswith("wellhead: this turn is forgotten: malformed answer")
    assert "First?" not in llm.prompts[1]


def test_a_turn_that_is_too_long_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(prompt: str) -> str:
        if "very long" in prompt:
            raise RequestError("the prompt has 9 tokens; shorten the prompt")
        return "fine"

    use(monkeypatch, FakeLLM(answer))
    type_in(monkeypatch, "very long\nSecond?\n")
    assert main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert out == "\nfine\n" and err.startswith("wellhead: this turn is forgotten: the prompt has 9 tokens")


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
    loaded: list[str | None],
    arguments: list[str],
    reason: str,
) -> None:
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


def test_speeds_are_those_of_prefill_and_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    # The clock moves one second a reading: start, first token, end.
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    answer = stream_answer(FakeLLM(lambda prompt: "abcde"), "prompt", SamplingParams(), lambda text: None)  # type: ignore[arg-type]
    assert (answer.prefill_speed, answer.decode_speed) == (6.0, 4.0)
    assert (answer.text, answer.tokens, answer.finish_reason) == ("abcde", 5, "length")
    one = stream_answer(FakeLLM(lambda prompt: "a"), "p", SamplingParams(), lambda text: None)  # type: ignore[arg-type]
    assert one.decode_speed is None


def test_path_names_the_ops_that_differ_from_most() -> None:
    assert path_taken(FakeLLM(str, paths=[("a", "cpu", "x"), ("b", "cpu", "y")])) == "cpu"  # type: ignore[arg-type]
    mixed = [("a", "cpu", ""), ("b", "triton", ""), ("c", "cpu", "")]
    assert path_taken(FakeLLM(str, paths=mixed)) == "cpu; triton (b)"  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["generate", "chat", "eval", "demo", "doctor", "plan", "serve", "bench"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"wellhead {command}" in capsys.readouterr().out.split("examples:")[1]


def test_help_does_not_import_torch() -> None:
    """Asking for help must not cost the seconds that torch takes to import."""
    code = "import sys; from wellhead.cli import parser; parser().format_help(); print('torch' in sys.modules)"
    variables = {**os.environ, "PYTHONPATH": str(Path(wellhead.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    assert done.stdout == "False\n"


def test_bench_lists_cases_without_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "moe", "--list"]) == 0
    assert "M=1,d=4096,m=2048" in capsys.readouterr().out
    assert main(["bench", "mow", "--list"]) == EXIT_ERROR
    assert "no op 'mow'" in capsys.readouterr().err
    assert main(["bench", "moe", "step"]) == EXIT_ERROR
    assert "bench moe step: step stands alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "option", "where"),
    [
        (["linear", "--layers", "4"], "--layers", "bench step"),  # 4 is the default, and still was asked for
        (["linear", "--layers", "fit"], "--layers", "bench step"),
        (["moe", "linear", "--eager"], "--eager", "bench step"),
        (["all", "--tp", "2"], "--tp", "bench step"),
        (["linear", "--rate=2"], "--rate", "bench serve"),
        (["linear", "--pict", "x.png"], "--picture", "bench step and bench serve"),
        (["step", "--case", "x"], "--case", "bench OP and bench OP --list"),
        (["step", "--impl", "triton"], "--impl", "bench OP"),
        (["step", "--url", "http://127.0.0.1"], "--url", "bench serve"),
        (["step", "--list"], "--list", "bench OP --list"),
        (["serve", "--batch", "1", "8"], "--batch", "bench step"),
        (["serve", "--tp", "1"], "--tp", "bench step"),
        (["serve", "--arch", "native"], "--arch", "bench OP"),
        (["moe", "--list", "--jsonl", "x"], "--jsonl", "bench OP, bench step and bench serve"),
    ],
)
def test_bench_refuses_what_its_mode_does_not_read(
    words: list[str], option: str, where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wellhead.cli.ranks.launch", lambda *args, **more: pytest.fail("processes were started"))
    assert main(["bench", *words]) == EXIT_ERROR
    err = capsys.readouterr().err
    assert f"{option} belongs to {where}, bench {words[0] if words[0] in ('step', 'serve') else 'OP'}" in err
    assert err.count("\n") == 1


def test_bench_reads_what_belongs_to_its_mode(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "moe", "--list", "--case", "M=1,"]) == 0
    assert all("M=1," in line for line in capsys.readouterr().out.splitlines())
    for words in (
        ["step", "--layers", "fit", "--tp", "1", "--picture", "x.png", "--jsonl", "x", "--prefill", "1"],
        ["serve", "--picture", "x.png", "--jsonl", "x", "--api-key", "k", "--debug"],
        ["moe", "--case", "M=1,", "--arch", "sm120", "--impl", "triton", "--jsonl", "x"],
    ):
        args = parser().parse_args(["bench", *words])
        args.words = ["bench", *words]
        args.modes.check(args)


def test_bench_names_the_cases_when_none_fits(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    assert main(["bench", "moe", "--case", "M=2,"]) == EXIT_ERROR
    assert "has no case with 'M=2,'" in capsys.readouterr().err


def test_bench_needs_a_card(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("wellhead.testing.bench.detect", lambda: None)
    assert main(["bench", "linear", "--case", "T=3,"]) == EXIT_ERROR
    assert "needs a CUDA card" in capsys.readouterr().err


def test_speculative_tokens_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from wellhead.engine import llm

    asked = []
    monkeypatch.setattr(llm, "LLM", lambda model, **given: asked.append(given) or FakeLLM(lambda prompt: "x"))
    assert main(["generate", "a", "--speculative-tokens", "2"]) == 0
    assert main(["generate", "a"]) == 0
    assert [given["speculative_tokens"] for given in asked] == [2, 0]


def test_impl_and_eager_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from wellhead.engine import llm

    asked = []
    monkeypatch.setattr(llm, "LLM", lambda model, **given: asked.append(given) or FakeLLM(lambda prompt: "x"))
    assert main(["generate", "a", "--impl", "moe=triton-w4a16", "--impl", "topk=auto", "--eager"]) == 0
    assert main(["generate", "a"]) == 0
    assert [(given["impl"], given["captured"]) for given in asked] == [
        ({"moe": "triton-w4a16", "topk": "auto"}, False), ({}, True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--impl", "moee=reference"], "no op 'moee'; the nearest is moe of"),
        (["--impl", "moe"], "--impl 'moe': expected OP=NAME"),
        (["--impl", "moe=fast"], "op 'moe' has no implementation 'fast'; there are triton-w4a8, triton,"),
        (["--impl", "moe=triton", "--impl", "moe=reference"], "op 'moe' is given both 'triton' and 'reference'"),
        (["--impl", "moe=triton"], "'triton' was asked for and cannot run on CPU only: needs kernels absent"),
        (["--eager"], "--eager (captured=False) on device 'cpu'"),
        (["--tp", "2", "--impl", "moee=reference"], "no op 'moee'"),
    ],
)
def test_an_implementation_is_used_or_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a", *words]) == EXIT_ERROR
    err = capsys.readouterr().err
    assert err.startswith("wellhead: error: ") and said in err and err.count("\n") == 1
