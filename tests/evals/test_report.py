"""The printed line and the JSON object of results."""

from __future__ import annotations

import json

from wellhead.evals import report
from wellhead.evals.task import Result

RESULT = Result("sums", right=81, count=263, tokens=526, seconds=2.0)


def test_line() -> None:
    assert report.line(RESULT) == "sums         30.8%  [25.5%, 36.6%]  81/263 right  263.0 tok/s"


def test_json_is_whole() -> None:
    read = json.loads(report.as_json([RESULT], "some/model", 3))
    assert (read["model"], read["seed"]) == ("some/model", 3)
    [task] = read["tasks"]
    assert task["right"] == 81 and task["accuracy"] == 81 / 263
    assert task["wilson95"][0] < task["accuracy"] < task["wilson95"][1]
    assert task["tokens_per_second"] == 263.0


def test_no_time_is_no_speed() -> None:
    assert "0.0 tok/s" in report.line(Result("sums", 1, 2, 0, 0.0))
