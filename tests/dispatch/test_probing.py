"""Questions that kill, hang or lie, and what nvidia-smi might say."""

from __future__ import annotations

import re
import stat
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from wellhead.dispatch import capability, driver, libraries, probing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules are found first, here and by the child."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_what_hangs_is_given_up(stub: Path) -> None:
    (stub / "sleeper.py").write_text("import time; time.sleep(600)", encoding="utf-8")
    (stub / "fine.py").write_text("__version__ = '1.2'", encoding="utf-8")
    began = time.monotonic()
    answers = probing.ask(["fine", "sleeper", "sleeper.part", "json"], seconds=3)
    assert time.monotonic() - began < 30
    assert answers.of("fine").version == "1.2"
    assert answers.of("sleeper").problem == "broken: importing it did not end within 3 s"
    assert answers.of("sleeper.part").problem is not None and answers.killed == {"sleeper"}
    assert answers.of("json").version is not None


def test_what_a_library_prints_is_not_an_answer(stub: Path) -> None:
    (stub / "noisy.py").write_text("print('{\"library\": 1}'); __version__ = '3'", encoding="utf-8")
    assert probing.ask(["noisy"]).of("noisy") == libraries.Library("noisy", "3")


def test_who_dies_in_a_question_takes_no_other_with_it(stub: Path) -> None:
    (stub / "torch.py").write_text(
        "__version__ = '2.13.0'\ndef __getattr__(name):\n    import os; os._exit(9)\n", encoding="utf-8"
    )
    answers = probing.ask(["torch", probing.CARDS, "json"])
    assert answers.of("torch").version == "2.13.0"
    assert answers.failed[probing.CARDS] == "ended the process (exit status 9)"
    assert answers.of("json").version is not None


def test_who_dies_of_a_signal_without_a_name(stub: Path) -> None:
    (stub / "timer.py").write_text("import os; os.kill(os.getpid(), 35); import time; time.sleep(9)", encoding="utf-8")
    (stub / "killer.py").write_text("import os; os.kill(os.getpid(), 9)", encoding="utf-8")
    answers = probing.ask(["timer", "killer", "json"])
    assert answers.of("timer").problem == "broken: importing it killed the process (signal 35)"
    assert answers.of("killer").problem == "broken: importing it killed the process (SIGKILL)"
    assert answers.of("json").version is not None and answers.killed == {"timer", "killer"}


def test_no_version_is_a_problem(stub: Path) -> None:
    (stub / "nameless.py").write_text("", encoding="utf-8")
    assert probing.ask(["nameless"]).of("nameless").problem == "does not say its version"


def test_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    oldest = {}
    for requirement in asked:
        found = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        assert found is not None, requirement
        oldest[found[1].replace("-", "_")] = found[2]
    assert {name: least for name, (least, _) in libraries.SUPPORTED.items() if name != "python"} == oldest
    assert set(oldest) == {*libraries.NEEDED, *libraries.SERVING}


@pytest.mark.parametrize(
    ("requires", "pin"),
    [
        (["filelock", 'triton==3.7.1; platform_system == "Linux"'], "3.7.1"),
        (["pytorch-triton (==3.6.0+git9844da95)"], "3.6.0+git9844da95"),
        (["triton>=3"], None),
        (None, None),
    ],
)
def test_the_pinned_triton(monkeypatch: pytest.MonkeyPatch, requires: list[str] | None, pin: str | None) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    assert libraries.pinned("triton", by="torch") == pin


def test_a_library_that_is_not_installed_pins_nothing() -> None:
    assert libraries.pinned("triton", by="no_such_library") is None


@pytest.mark.parametrize(
    ("archs", "arch", "fits"),
    [
        (["sm90", "sm120"], "sm120", True),
        (["sm90", "sm120"], "sm121", True),  # binaries run on later minor numbers of their generation
        (["sm90", "sm121"], "sm120", False),
        (["sm80", "sm90"], "sm120", False),
        (["sm80", "compute90"], "sm120", True),  # PTX runs on everything later
        (["sm90a", "compute120"], "sm90", True),
        (["sm80"], "sm89", True),
        (["compute120"], "sm90", False),
        (["sm120a"], "sm121", False),  # what is made for one architecture's own features runs on that one alone
        (["sm120f"], "sm121", True),
        (["compute90a"], "sm120", False),
        (["compute90a"], "sm90", True),
    ],
)
def test_binaries_for_a_card(archs: list[str], arch: str, fits: bool) -> None:
    assert capability.has_kernels(archs, arch) is fits


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An nvidia-smi of our own."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


TWO = """case "$1" in
topo) printf '\\033[4mGPU0 GPU1\\033[0m\\n GPU0 X CNS\\n GPU1 CNS X\\n\\nLegend: X = Self\\n';;
*) echo "0, NVIDIA RTX PRO 6000 Blackwell Workstation Edition, 580.65, 12.0, 97887, 12, 5, 16, 16"
   echo "1, NVIDIA GB10, 580.65, 12.1, [N/A], [N/A], 5, 8, 16";;
esac"""


def test_two_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, TWO)
    found = driver.query()
    assert found.problem is None and found.version == "580.65"
    assert [(gpu.arch, gpu.memory_mib, gpu.link) for gpu in found.gpus] == [
        ("sm120", 97887, "PCIe 5 x16 (of x16)"), ("sm121", None, "PCIe 5 x8 (of x16)")
    ]  # fmt: skip
    assert found.peers == (("X", "CNS"), ("CNS", "X"))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'NVIDIA-SMI has failed: version mismatch'; exit 18", "ended with status 18: NVIDIA-SMI has failed"),
        ("exit 0", "lists no card"),
        ("echo nonsense", "lists no card"),
        ("exec sleep 60", "does not answer within 1 s"),
    ],
)
def test_a_driver_that_is_not_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    monkeypatch.setattr(driver, "SECONDS", 1)
    smi(tmp_path, monkeypatch, script)
    found = driver.query()
    assert found.gpus == () and found.problem is not None and said in found.problem


def test_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver.query() == driver.Driver(problem="nvidia-smi is not installed", installed=False)
