"""`wellhead bench` without a card: what it lists, and which mode reads which option."""

from __future__ import annotations

import pytest

from wellhead.cli import EXIT_ERROR, main, parser


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
    shown = capsys.readouterr().out.splitlines()
    assert shown and all("M=1," in line for line in shown)
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
