"""tools/install.py: its decisions, without installing anything."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_tool", ROOT / "tools" / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", [(3, 10), (3, 15), (2, 7), (4, 0)])
def test_other_pythons_are_refused_by_name(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    monkeypatch.setattr(tool.shutil, "which", lambda name: f"/bin/{name}" if name == "python3.13" else None)
    monkeypatch.setattr(tool, "_runs", lambda name: True)
    with pytest.raises(tool.InstallError, match=r"Python 3\.11 to 3\.14 is needed.*PYTHON=python3\.13"):
        tool.check_python(version)


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13), (3, 14)])
def test_supported_pythons_pass(tool: ModuleType, version: tuple[int, int]) -> None:
    assert tool.check_python(version) is None


@pytest.mark.parametrize(
    ("platform", "nvidia", "answers", "wanted"),
    [
        ("linux", False, True, True),
        ("linux", False, False, False),
        ("linux", True, True, False),
        ("darwin", False, True, False),
    ],
)
def test_cpu_index_only_without_a_card_and_when_it_answers(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    nvidia: bool,
    answers: bool,
    wanted: bool,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(tool, "has_nvidia", lambda: nvidia)
    monkeypatch.setattr(tool, "reachable", lambda url: answers)
    assert tool.wants_cpu_index() is wanted


def test_the_size_is_said(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(tool, "has_nvidia", lambda: False)
    assert tool.size_line(cpu_index=True, dev=False).startswith("Up to 450 MB to download")
    assert "does not answer" in tool.size_line(cpu_index=False, dev=True)
    monkeypatch.setattr(tool, "has_nvidia", lambda: True)
    assert tool.size_line(cpu_index=False, dev=False).startswith("Up to 2.8 GB to download (torch with CUDA)")


def test_an_unreachable_index_is_no_error(tool: ModuleType) -> None:
    assert tool.reachable("http://127.0.0.1:9/", seconds=1.0) is False


def test_torch_is_pinned(tool: ModuleType) -> None:
    assert tool.pinned("triton", 'torch==1.0\ntriton==3.7.1; sys_platform == "linux"\n') == "triton==3.7.1"
    with pytest.raises(tool.InstallError, match="pins no 'torch=='"):
        tool.pinned("torch", "torchvision==1.0\n")


def test_stamp(tool: ModuleType, tmp_path: Path) -> None:
    stamp = tmp_path / "stamp"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert not tool.is_current(stamp, [])
    stamp.write_text(tool.fingerprint([]))
    assert tool.is_current(stamp, []) and not tool.is_current(stamp, ["dev"])
    stamp.write_text(f"{tool.fingerprint(['dev'])} dev\n")
    assert tool.is_current(stamp, []) and tool.is_current(stamp, ["dev"])
    (tmp_path / "bin" / "python").unlink()
    assert not tool.is_current(stamp, [])
    (tmp_path / "bin" / "python").touch()
    stamp.write_text("of-other-files dev\n")
    assert not tool.is_current(stamp, ["dev"])


@pytest.mark.parametrize("cpu_index", [True, False])
def test_the_steps_and_the_stamp(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    cpu_index: bool,
) -> None:
    commands: list[list[str]] = []
    printed: list[str] = []

    def step(what: str, command: list[str], fix: str) -> None:
        printed.append(capsys.readouterr().out)
        commands.append(command)
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "python").touch()

    monkeypatch.setattr(tool, "step", step)
    monkeypatch.setattr(tool, "wants_cpu_index", lambda: cpu_index)
    tool.install(tmp_path, ["dev"])
    assert "to download" in printed[0], "the size is said before the first step"
    venv, torch, rest = (" ".join(command) for command in commands)
    assert "-m venv" in venv and "torch==" in torch and "-e .[dev]" in rest
    assert ("--no-deps --index-url " + tool.CPU_INDEX in torch) is cpu_index
    assert "--index-url" not in rest and "-c constraints.txt" in torch and "-c constraints.txt" in rest
    # Nothing is left to do, for the extra or without it.
    tool.install(tmp_path, ["dev"])
    tool.install(tmp_path, [])
    assert len(commands) == 3


def test_a_failed_step_leaves_no_stamp(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def step(what: str, command: list[str], fix: str) -> None:
        raise tool.InstallError(what)

    (tmp_path / "wellhead-installed").write_text("of-other-files")
    monkeypatch.setattr(tool, "step", step)
    monkeypatch.setattr(tool, "wants_cpu_index", lambda: False)
    with pytest.raises(tool.InstallError):
        tool.install(tmp_path, [])
    assert not (tmp_path / "wellhead-installed").exists()


def test_a_failing_step_is_one_clear_error(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def install(venv: Path, extras: list[str]) -> None:
        tool.step("make it", [sys.executable, "-c", "raise SystemExit(3)"], "do this")

    monkeypatch.setattr(tool, "install", install)
    assert tool.main([]) == 1
    err = capsys.readouterr().err
    assert err.startswith("install: error: make it failed (exit 3)") and "do this" in err
