"""`pytest --record FILE`: a run on a card leaves one JSON line, with what passed, the card, versions and commit."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import pytest

from wellhead.dispatch import capability
from wellhead.testing.record import append, origin

ENGINES = ("transformers", "sglang")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FILE", help="append this run's outcome to FILE, one JSON line")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("--record")) is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(path), "recorder")


class _Recorder:
    """Counts every test once: as failed if any of its phases failed, as passed if its call did."""

    def __init__(self, path: Path):
        self._path, self._began = path, time.perf_counter()
        self._outcome: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed" or (report.when == "call" and self._outcome.get(report.nodeid) is None):
            self._outcome[report.nodeid] = report.outcome

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        card = capability.detect()
        counted = list(self._outcome.values())
        append(self._path, {
            "kind": "tests", **{name: counted.count(name) for name in ("passed", "failed", "skipped")},
            "exit_status": int(exitstatus), "seconds": round(time.perf_counter() - self._began, 1),
            "failures": [name for name, outcome in self._outcome.items() if outcome == "failed"],
            "gpu": "none" if card is None else card.name,
            "engines": {name: str(module.__version__) for name in ENGINES if (module := sys.modules.get(name))},
            **origin(), "command": shlex.join(["python", "-m", "pytest", *session.config.invocation_params.args]),
        })  # fmt: skip
