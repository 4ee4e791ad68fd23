"""Which stages cards and a disk get, that one ends in time with all it started, and that a wrong one ends all."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from tools.eight_cards import main, stages
from tools.stages import Stage, kept, run

from tools import eight_cards

OUT, SCRATCH = Path("/out"), Path("/scratch")


def names(cards: int, free_gb: float = 1000, **more: str) -> list[str]:
    return [stage.name for stage in stages(cards, OUT, SCRATCH, free_gb, **more)]


def test_stages_follow_from_cards_and_disk() -> None:
    eight = names(8)
    assert eight[:2] == ["divides", "answers-tp2"] and names(8, sums="one-shot") == ["sums", *eight]
    assert [name for name in eight if name.startswith(("pro", "flash-tp"))] == [
        "pro-tp8", "flash-tp8", "flash-tp4", "flash-tp2", "flash-tp1"
    ]  # fmt: skip
    assert eight[-2:] == ["flash-files", "load-tp8"] and names(8, 100)[-1] == "flash-tp1"
    assert "answers-tp4" in names(4) and "answers-tp8" not in names(7) and names(2, sums="nccl") == names(2)
    assert len(stages(4, OUT, SCRATCH, 1000)[-1].commands) == 4
    with pytest.raises(ValueError, match="1 cards: expected two, four or eight"):
        names(1)


def test_no_speed_comes_before_every_answer_was_right() -> None:
    found = stages(8, OUT, SCRATCH, 1000, sums="nccl")
    must = [stage.must for stage in found]
    assert must == sorted(must, reverse=True) and found[0].must
    for stage in found:
        command = stage.commands[0]
        assert ("--sums" in command) == ("--tp" in command and not stage.name.endswith("tp1"))


def test_a_stage_ends_at_its_limit_with_its_children(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    inner = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    began = time.monotonic()
    line = run(Stage("slow", ((sys.executable, "-c", child),), 60), tmp_path, 2.0)
    assert line["status"] == "ended after 2 s" and time.monotonic() - began < 20
    state, deadline = Path(f"/proc/{told.read_text()}/stat"), time.monotonic() + 10
    while state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child goes on"
    assert "== slow:" in (tmp_path / "log.txt").read_text()


def test_what_a_stage_says_is_kept(tmp_path: Path) -> None:
    code = "import json, sys; print('begin'); print(json.dumps({'a': {'b': 1}}, indent=1)); sys.exit(3)"
    line = run(Stage("told", ((sys.executable, "-c", code),), 30, keep="kept.jsonl"), tmp_path, 30)
    assert line["status"] == 3
    assert json.loads((tmp_path / "kept.jsonl").read_text()) == {"stage": "told", "a": {"b": 1}}
    kept(tmp_path / "none.jsonl", "x", "nothing {here}")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_wrong_answer_ends_it_and_a_second_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def three(*_: object, **__: object) -> list[Stage]:
        codes = {"first": "pass", "answers": f"import os; os.stat({str(tmp_path / 'right')!r})", "speed": "pass"}
        return [Stage(n, ((sys.executable, "-c", c),), 30, must=n != "speed") for n, c in codes.items()]

    monkeypatch.setattr(eight_cards, "stages", three)
    words = [str(tmp_path / "out"), "--cards", "2", "--scratch", str(tmp_path / "scratch")]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "answers must hold before any speed" in said and "speed " not in said.replace("speed is", "")
    (tmp_path / "right").touch()
    assert main(words) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["answers", "speed"]
    assert main([*words, "--stages", "first"]) == 0
    with pytest.raises(ValueError, match="--stages second: expected first, answers, speed"):
        main([*words, "--stages", "second"])
    assert main([*words, "--stages", "first", "--budget", "5"]) == 1
