"""A machine with any cards, driver and libraries, as the doctor would see it."""

from __future__ import annotations

import pytest

from wellhead.cli import doctor, doctor_machine
from wellhead.dispatch import driver as smi
from wellhead.dispatch import libraries, probing
from wellhead.dispatch.driver import Driver
from wellhead.dispatch.probing import Answers

NO_DRIVER = Driver(problem="nvidia-smi is not installed", installed=False)


def faked(
    *cards: dict[str, object], torch: str | None = "2.13.0+cu130", triton: str | None = "3.7.1", **more: object
) -> Answers:
    """What `probing.ask` would say on a machine with those cards; more: other values of "torch.cuda"."""
    answers = Answers()
    for name in doctor.ASKED:
        if name not in probing.QUESTIONS:
            version = {"torch": torch, "triton": triton}.get(name, libraries.SUPPORTED[name][0])
            answers.libraries[name] = libraries.Library(name, version, None if version else "broken: no")
    said = {"cuda": "13.0", "archs": ["sm90", "sm120"], "cards": list(cards), "current": 0, "peers": []}
    answers.values[probing.CARDS] = said | more
    answers.values[probing.INTERPRETER] = False
    answers.values[probing.DISK] = 10**12
    return answers


def gpu(arch: str = "sm120", shared: int | None = 101376, memory: int = 102 * 10**9) -> dict[str, object]:
    return {"name": "Faked GPU", "arch": arch, "memory": memory, "shared_bytes": shared}


def put(
    monkeypatch: pytest.MonkeyPatch, *cards: dict[str, object], driver: Driver = NO_DRIVER, pin: str | None = None,
    answers: Answers | None = None, **more: object,
) -> None:  # fmt: skip
    """Make this the machine that the doctor sees; more: as in `faked`."""
    found = answers or faked(*cards, **more)  # type: ignore[arg-type]
    monkeypatch.setattr(probing, "ask", lambda names: found)
    monkeypatch.setattr(smi, "query", lambda: driver)
    monkeypatch.setattr(doctor_machine, "pinned", lambda name, by: pin)
