"""The printed lines and the JSON object of results."""

from __future__ import annotations

import json

from fakes.llm import FakeCompletion
from wellhead.evals import report
from wellhead.evals.task import Result
from wellhead.testing.ties import Tally


def result(drafts: tuple[int, int, int] = (0, 0, 0)) -> Result:
    """263 completions of two tokens; the first has all (steps, drafted, accepted)."""
    completions = [FakeCompletion(3, [1, 2], "x", "stop") for _ in range(263)]
    completions[0].draft_steps, completions[0].drafted_tokens, completions[0].accepted_tokens = drafts
    return Result("sums", 81, completions)  # type: ignore[arg-type]


def test_line() -> None:
    assert report.line(result()) == "sums         30.8%  [25.5%, 36.6%]  81/263 right"
    assert report.line(result((40, 100, 60))).endswith("right  1.50 drafts accepted a step, 60.0% of all")
    assert report.speed_line([result(), result()], 2.0) == "1052 tokens in 2.0 s, 526.0 tok/s"


def test_json_is_whole() -> None:
    read = json.loads(report.as_json([result()], 2.0, "some/model", 3))
    assert (read["model"], read["seed"], read["tokens_per_second"]) == ("some/model", 3, 263.0)
    [task] = read["tasks"]
    assert task["right"] == 81 and task["accuracy"] == 81 / 263 and task["tokens"] == 526
    assert task["wilson95"][0] < task["accuracy"] < task["wilson95"][1]
    assert "agree" not in task and "against" not in read and "draft_steps" not in task


def test_differences_are_told_with_their_margins() -> None:
    tally = Tally(261, ["sums 4: tie at token 1, margin 0.030"], ["sums 9: differ at token 0, margin 2.000"])
    told = report.difference_lines("cpu", [result()], [tally])
    assert told == ["sums       against cpu: 261 agree, 1 tie, 1 differ", *tally.ties, *tally.wrong]
    read = json.loads(report.as_json([result((40, 100, 60))], 2.0, "m", 0, ("cpu", [tally])))
    assert read["against"] == "cpu"
    assert (read["tasks"][0]["agree"], read["tasks"][0]["ties"]) == (261, tally.ties)
    assert read["tasks"][0]["differ"] == tally.wrong and read["tasks"][0]["draft_steps"] == 40


def test_no_time_is_no_speed() -> None:
    assert "0.0 tok/s" in report.speed_line([result()], 0.0)
