"""The command line against a fake engine: what is printed where, exit statuses, and errors in one line."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import wellhead
from fakes.llm import FakeLLM, use
from wellhead.cli import EXIT_ERROR, chat, main, options
from wellhead.cli.measured import path_taken, stream_answer
from wellhead.engine.request import RequestError
from wellhead.engine.sampling_params import SamplingParams


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WELLHEAD_MODEL", raising=False)


@pytest.fixture
def loaded() -> list[str | None]:
    """The models that were asked for."""
    return []


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
