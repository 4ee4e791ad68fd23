"""The doctor: capability faked to 12.0 and 12.1, broken libraries, golden reasons, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from fakes.machine import faked, gpu, put
from wellhead.cli import doctor, main
from wellhead.dispatch import capability, libraries, probing
from wellhead.dispatch.spec import REFERENCE
from wellhead.ops import registry

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return partial(put, monkeypatch)


@pytest.mark.parametrize("arch", ["sm120", "sm121"])
def test_a_faked_card(machine: Callable[..., None], arch: str) -> None:
    machine(gpu(arch))
    report = doctor.examine()
    assert report.card == f"Faked GPU ({arch})"
    shared = report.features["shared_bytes"]
    assert (shared.value, shared.evidence, shared.detail) == (101376, "queried", "101376 B")
    assert report.features["kernels"].evidence == "queried"
    assert not any(report.features[unit].present for unit in ("tcgen05", "wgmma", "cluster_shared"))
    assert report.features["pdl"].present
    simulated = doctor.examine(arch)
    for name, feature in report.features.items():
        assert feature.present == simulated.features[name].present, name
    assert list(dict.fromkeys(c.op for c in report.choices)) == list(registry.OPS) and report.problems == []
    for choice in report.choices:
        kernels = [impl.name for impl in registry.spec(choice.op).impls if impl.name != REFERENCE]
        if kernels:
            assert choice.impl in kernels and choice.reason.startswith(f"first that fits on Faked GPU ({arch})")
        else:
            assert (choice.impl, choice.reason) == (REFERENCE, "the op has no kernels yet")


def test_features_that_a_process_is_told_to_do_without(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(gpu("sm120"))
    monkeypatch.setenv("WELLHEAD_WITHOUT", "pdl, block_scaled_mma")
    report = doctor.examine()
    assert str(report.features["pdl"]) == "pdl absent (queried: WELLHEAD_WITHOUT names it)"
    assert not report.features["block_scaled_mma"].present and report.features["fp8_mma"].present
    assert doctor.examine("sm120").features["pdl"].present  # another card's own
    assert capability.here()["pdl"].detail == "WELLHEAD_WITHOUT names it"
    monkeypatch.setenv("WELLHEAD_WITHOUT", "pld")
    with pytest.raises(ValueError, match=r"WELLHEAD_WITHOUT=pld: there is no 'pld', expected some of fp8_mma, .*, pdl"):
        capability.here()
    (problem,) = doctor.examine().problems
    assert problem.about == "environment" and "there is no 'pld'" in problem.what


def test_fp8_on_both_numbers_by_triton_version() -> None:
    def fp8(arch: str, triton: str) -> tuple[bool, bool]:
        features = capability.features_of(capability.simulated(arch), triton)
        return features["fp8_mma"].present, features["block_scaled_mma"].present

    assert [fp8("sm120", version) for version in ("3.6.0", "3.7.1", "3.9.0")] == [(True, True)] * 3
    assert [fp8("sm121", version) for version in ("3.6.0", "3.7.1", "3.9.0")] == [(False, False)] * 2 + [(True, True)]


def test_a_driver_that_raises_is_a_finding(
    machine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = faked()
    del answers.values[probing.CARDS]
    answers.failed[probing.CARDS] = "raised RuntimeError: driver too old"
    machine(answers=answers)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "card     unknown: the driver does not answer" in out
    assert "card: asking the driver raised RuntimeError: driver too old\n    do: see what nvidia-smi says" in out


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, object], str]:
    """The command in a fresh process that finds `folder`'s modules first."""
    code = (
        f"import sys; sys.path[:0] = [{str(folder)!r}, {str(SOURCE)!r}]\n"
        f"from wellhead.cli import main; sys.exit(main({list(arguments)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    try:
        return done.returncode, json.loads(done.stdout), done.stderr
    except json.JSONDecodeError:
        pytest.fail(f"status {done.returncode}, not JSON: {done.stdout!r} {done.stderr!r}")


BROKEN = {
    "AssertionError: no such arch": "raise AssertionError('no such arch')",
    "SystemExit: 3": "import sys; sys.exit(3)",
    "ModuleNotFoundError: No module named 'libnotthere'": "import libnotthere",
    "OSError: libcuda.so.1: cannot open": "raise OSError('libcuda.so.1: cannot open\\nsecond line')",
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_libraries_do_not_take_it_down(tmp_path: Path, reason: str) -> None:
    for name in ("torch", "triton", "rich", "numpy"):
        (tmp_path / f"{name}.py").write_text(BROKEN[reason], encoding="utf-8")
    status, report, _ = run(tmp_path, "doctor", "--json", "--simulate", "sm120")
    assert status == 1 and report["healthy"] is False
    problems = {problem["about"]: problem for problem in report["problems"]}  # type: ignore[attr-defined]
    for name in ("torch", "triton"):
        assert problems[name]["what"] == f"broken: importing it raised {reason}"
        assert problems[name]["fix"].startswith("pip install --force-reinstall '" + name)
    assert {"rich", "numpy"} <= set(problems) and report["ops"] == []
    features = {f["name"]: f for f in report["features"]}  # type: ignore[attr-defined]
    assert features["kernels"] == {
        "name": "kernels",
        "present": False,
        "evidence": "queried",
        "detail": "Triton is missing or broken",
        "value": 0,
    }


KILLS = {
    "killed the process (SIGSEGV)": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "ended the process (exit status 7)": "import os; os._exit(7)",
}


@pytest.mark.parametrize("how", KILLS)
def test_libraries_that_kill_the_process_that_imports_them(tmp_path: Path, how: str) -> None:
    for name in ("torch", "pydantic"):
        (tmp_path / f"{name}.py").write_text(KILLS[how], encoding="utf-8")
    (tmp_path / "rich.py").write_text("raise SystemExit(5)", encoding="utf-8")
    status, report, _ = run(tmp_path, "doctor", "v4-flash", "--json")
    assert status == 1
    problems = {problem["about"]: problem["what"] for problem in report["problems"]}  # type: ignore[attr-defined]
    assert problems["torch"] == f"broken: importing it {how}"
    assert problems["pydantic"] == f"broken: importing it {how}"
    assert problems["rich"] == "broken: importing it raised SystemExit: 5"
    versions = {library["name"]: library["version"] for library in report["libraries"]}  # type: ignore[attr-defined]
    assert versions["torch"] is None and versions["numpy"] and versions["uvicorn"]  # those behind it were asked
    assert report["model"]["title"].startswith("V4-Flash")  # type: ignore[index]
    assert report["card"] == "unknown: torch is needed to ask"


def test_text_when_everything_is_broken(tmp_path: Path) -> None:
    for name in (*libraries.NEEDED, *libraries.SERVING):
        (tmp_path / f"{name}.py").write_text("import os; os.abort()", encoding="utf-8")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(SOURCE)!r}]\n"
        "from wellhead.cli import main; sys.exit(main(['doctor', 'v4-flash']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.count("broken: importing it killed the process (SIGABRT)") == 2 * 12
    assert "V4-Flash (FP4 experts, FP8 rest): runs" in done.stdout


def test_only_triton_broken_leaves_the_reference_healthy_or_says_which_op_is_not(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise AssertionError('built for another torch')", encoding="utf-8")
    status, report, _ = run(tmp_path, "doctor", "--json", "--simulate", "sm121")
    assert status == 1
    (problem,) = (p for p in report["problems"] if p["about"] == "triton")  # type: ignore[attr-defined]
    assert problem["what"] == "broken: importing it raised AssertionError: built for another torch"
    ops = {o["op"]: o for o in report["ops"]}  # type: ignore[attr-defined]
    assert set(ops) == set(registry.OPS)
    for o in ops.values():
        assert o["impl"] == REFERENCE
        assert o["reason"] in ("the op has no kernels yet", "kernels cannot run: Triton is missing or broken")


def test_probe_tells_missing_old_and_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libraries.probe("no_such_library").problem == "not installed"
    assert libraries.probe("torch").fits
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.5.1"))
    assert libraries.probe("triton").problem == "3.5.1 is older than 3.6; upgrade it"
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.10.0+git1"))
    assert libraries.probe("triton").fits
    assert libraries.python().fits
    monkeypatch.setattr(libraries.platform, "python_version", lambda: "3.15.0b1")
    assert libraries.python().problem == "3.15.0b1 is not supported; install one older than 3.15"


def test_text_for_sm121(machine: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    machine()
    assert main(["doctor", "--simulate", "sm121"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "card     some sm121 card (sm121, simulated)" in lines
    assert (
        "  fp8_mma            no   compiled  lowered to mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32; "
        "Triton 3.9 brings it (Triton 3.7, sm121)" in lines
    )
    assert "  shared_bytes       yes  assumed   101376 B, the documented limit of sm121" in lines
    taken = "  compressor         triton       first that fits on some sm121 card"
    assert any(line.startswith(taken) for line in lines)
    assert lines[-1] == "healthy"


def test_a_broken_spec_is_named_and_the_others_are_shown(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()

    def broken(op: str) -> object:
        if op == "rope":
            raise ImportError("half an edit")
        return whole(op)

    whole = registry.spec
    monkeypatch.setattr(registry, "spec", broken)
    report = doctor.examine("sm120")
    assert [str(p) for p in report.problems] == ["op rope: its SPEC cannot be read: ImportError: half an edit"]
    assert list(dict.fromkeys(c.op for c in report.choices)) == [op for op in registry.OPS if op != "rope"]


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--impl", "ropee=x"]) == 2
    assert "no op 'ropee'; the nearest is rope" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--simulate", "sm75"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "wellhead doctor v4-flash --simulate sm120" in capsys.readouterr().out


def test_one_file_reads_capability_numbers() -> None:
    """Of cards; of the target that a kernel is compiled for, kernels ask in one place too."""

    def readers(*words: str) -> set[str]:
        texts = {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
        return {name for name, text in texts.items() if any(word in text for word in words)}

    cards = readers("get_device_capability", "get_device_properties", "current_target(", "get_arch_list")
    assert cards == {"wellhead/dispatch/capability.py"}
    assert readers("cuda_capability_geq") == {"wellhead/ops/device_formats.py"}


def test_registry_lists_every_op_folder() -> None:
    folders = {path.parent.name for path in (SOURCE / "wellhead" / "ops").glob("*/__init__.py")}
    assert folders == set(registry.OPS)
    with pytest.raises(ValueError, match="no op 'nope'"):
        registry.spec("nope")
