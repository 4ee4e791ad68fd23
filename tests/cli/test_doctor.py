"""The doctor's findings about machine and model: each problem with what to do, nothing private in the JSON."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.machine import faked, gpu, put
from wellhead.cli import doctor, main
from wellhead.cli.doctor_report import Report, as_json
from wellhead.dispatch import cards, libraries, probing
from wellhead.dispatch.driver import Driver, Gpu
from wellhead.model.locate import resolve_model
from wellhead.model.published import published_config

pytest.importorskip("triton")


def nvidia(index: int = 0, driver: str = "580.65", arch: str = "sm120", width: int = 16, used: int = 1) -> Gpu:
    return Gpu(index, "Faked GPU", driver, arch, 97887, used, 5, width, 16)


def problems(report: Report) -> dict[str, str]:
    assert all(problem.fix for problem in report.problems)
    return {problem.about: problem.what for problem in report.problems}


@pytest.mark.parametrize(
    ("machine", "about", "said", "fix"),
    [
        ({"pin": "3.6.0"}, "triton", "asks for Triton 3.6.0, installed is 3.7.1", "pip install triton==3.6.0"),
        ({"driver": Driver((nvidia(driver="570.86"),))}, "driver", "older than 580", "update the driver to 580"),
        (
            {"driver": Driver((nvidia(),)), "cards": [], "cuda": None, "archs": []}, "torch",
            "the driver lists 1 cards, torch sees none: it is a CPU build", "download.pytorch.org/whl/cu130",
        ),
        (
            {"driver": Driver((nvidia(),)), "cards": []}, "torch", "it was built for CUDA 13.0",
            "CUDA_VISIBLE_DEVICES",
        ),
        ({"archs": ["sm80", "sm90"]}, "torch", "no kernels for sm120, it was built for sm80, sm90", "cu130"),
        ({"driver": Driver(problem="nvidia-smi ended with status 18: mismatch")}, "driver", "status 18", "a restart"),
        ({"cards": [gpu("sm75")], "archs": ["sm75"]}, "card", "sm75 has no profile", "use one of sm80"),
    ],
)  # fmt: skip
def test_a_misfit_is_a_problem_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], about: str, said: str, fix: str
) -> None:
    put(monkeypatch, **{"cards": [gpu()], **machine})
    report = doctor.examine()
    assert said in problems(report)[about]
    assert any(fix in problem.fix for problem in report.problems if problem.about == about)


def test_a_machine_in_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    put(monkeypatch, gpu(), gpu(), driver=Driver((nvidia(), nvidia(1)), (("X", "OK"), ("OK", "X"))), pin="3.7.1")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "  0: Faked GPU, sm120, 97887 MiB, PCIe 5 x16 (of x16)" in said and "peers of 1: OK X" in said
    assert "torch asks for 3.7.1" in said and said.endswith("healthy\n") and "notes" not in said


def test_what_is_worth_knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = (("X", "CNS"), ("CNS", "X"))
    put(monkeypatch, gpu(), gpu("sm90"), driver=Driver((nvidia(width=4, used=20000), nvidia(1)), peers), pin="3.7.0")
    report = doctor.examine()
    assert report.problems == []
    for said in (
        "asks for Triton 3.7.0, installed is 3.7.1; the same minor version", "card 0 hangs on 4 of 16 PCIe lanes",
        "card 0: 20000 of 97887 MiB are in use", "no peer access between cards 0-1", "the cards differ (sm120, sm90)",
    ):  # fmt: skip
        assert any(said in note for note in report.notes), (said, report.notes)


def test_peers_as_torch_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, gpu(), gpu(), peers=[[True, False], [False, True]])
    assert any("no peer access between cards 0-1" in note for note in doctor.examine().notes)


def test_a_misspelt_variable_is_reported_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, gpu())
    monkeypatch.setenv("WELLHEAD_MODLE", "x")
    assert "WELLHEAD_MODLE is not one of wellhead's" in problems(doctor.examine())["environment"]
    assert main(["doctor"]) == 1
    assert main(["bench", "moe", "--list"]) == 2


def test_a_library_that_only_the_server_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = faked(gpu())
    answers.libraries["fastapi"] = libraries.Library("fastapi", None, "not installed")
    put(monkeypatch, answers=answers)
    report = doctor.examine()
    assert report.problems == [] and any("pip install 'wellhead[serve]'" in note for note in report.notes)
    answers.libraries["pydantic"] = libraries.Library("pydantic", None, "broken: importing it raised ImportError: x")
    assert "broken" in problems(doctor.examine())["pydantic"]


def test_the_embedded_checkpoint_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, gpu())
    report = doctor.examine(model=str(resolve_model()))
    assert report.problems == [] and report.model is not None
    assert report.model.runs and report.model.files.startswith("complete, 0.02 GB in ")
    assert [(row["needed"], row["here"]) for row in report.model.memory] == [(1, 1)]


def test_a_truncated_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(monkeypatch, gpu())
    folder = tmp_path / "cut"
    shutil.copytree(resolve_model(), folder)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    report = doctor.examine(model=str(folder))
    assert "truncated by 1000 bytes" in problems(report)["checkpoint"]
    assert report.model is not None and not report.model.runs


@pytest.mark.parametrize(
    ("cards", "experts", "needed", "said"),
    [
        ([gpu(), gpu()], "fp4", 2, None),
        ([gpu()], "fp4", 2, "1 x Faked GPU do not hold it, 2 would"),
        ([gpu("sm80", memory=85 * 10**9)] * 8, "fp4", 4, None),
        ([gpu()] * 8, "fp8", None, "Faked GPU (sm120) has no kernel yet for moe"),
        ([gpu(memory=10**9)], "fp4", None, "1 x Faked GPU do not hold it"),
    ],
)
def test_whether_the_cards_hold_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cards: list[dict[str, object]], experts: str, needed: int | None,
    said: str | None,
) -> None:  # fmt: skip
    put(monkeypatch, *cards, archs=["sm80", "sm120"])
    config = tmp_path / "config.json"
    config.write_text(json.dumps(published_config("v4-flash") | {"expert_dtype": experts}), encoding="utf-8")
    report = doctor.examine(model=str(config))
    assert report.model is not None and report.model.memory[0]["needed"] == needed
    found = problems(report).get("memory")
    assert found is None if said is None else found is not None and found.startswith(said)


def test_ops_are_chosen_for_the_models_own_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """V4-Pro has a kernel for each of its ops, and no number of H100 holds it; eight H200 do."""
    put(monkeypatch, archs=["sm90"])
    report = doctor.examine("sm90", model="v4-pro")
    assert report.model is not None and report.problems == []
    assert {row["card"]: row["needed"] for row in report.model.memory}["H200 141GB SXM"] == 8
    monkeypatch.setattr(cards, "of_arch", lambda arch: [cards.find("h100")])
    found = problems(doctor.examine("sm90", model="v4-pro"))
    assert list(found) == ["memory"] and "no number of known sm90 cards" in found["memory"]


def test_the_hosts_memory_where_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch)
    found = problems(doctor.examine(model="v4-flash"))["memory"]
    assert "in torch on the CPU its weights take about 11" in found
    assert doctor.examine(model=str(resolve_model())).problems == []


def test_a_download_that_the_disk_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = faked(gpu(), gpu())
    answers.values[probing.DISK] = 60 * 10**9
    put(monkeypatch, answers=answers)
    assert "download of about 168 GB does not fit 60.0 GB" in problems(doctor.examine(model="v4-flash"))["disk"]
    simulated = doctor.examine("sm120", model="v4-flash")
    assert simulated.problems == [] and any("does not fit" in note for note in simulated.notes)


@pytest.mark.parametrize("arch", ["sm120", "sm121", "sm89", "sm90"])
def test_simulated_cards_hold_it(monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    put(monkeypatch, archs=["sm89", "sm90", "sm120"])
    report = doctor.examine(arch, model="v4-flash")
    assert report.problems == [] and report.model is not None
    assert min(row["needed"] or 99 for row in report.model.memory) in (1, 2, 4)


def test_a_checkpoint_that_does_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, gpu())
    quantization = {**published_config("v4-flash")["quantization_config"], "moe_quant_algo": "NVFP4"}
    config = published_config("v4-flash") | {"quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["doctor", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "checkpoint: V4-Flash, re-quantised to NVFP4: a third party's" in said and "do: use the official" in said
    assert "no such folder or config.json" in problems(doctor.examine(model="no such"))["checkpoint"]
    (tmp_path / "config.json").write_text(json.dumps(published_config("v4-flash") | {"hc_mult": 3}), encoding="utf-8")
    assert "hc_mult is 3, expected 4" in problems(doctor.examine(model=str(tmp_path)))["checkpoint"]
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert "not readable as JSON" in problems(doctor.examine(model=str(tmp_path)))["checkpoint"]


KEYS = {
    "schema", "wellhead", "simulated", "libraries", "triton_pinned_by_torch", "torch", "driver", "gpus", "peers",
    "free_disk", "card", "where", "features", "ops", "model", "notes", "problems", "healthy",
}  # fmt: skip


def test_json_for_bug_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stable keys; no path but MODEL's own, no host; addresses of the web and ordinary slashes stay."""
    host = socket.gethostname()
    answers = faked(gpu())
    secret = f"broken: importing it raised OSError: /home/somebody/venv/lib/libtorch.so: not on {host}; ~/.cache/x/y"
    answers.libraries["numpy"] = libraries.Library("numpy", None, secret)
    put(monkeypatch, answers=answers)
    shutil.copytree(resolve_model(), tmp_path / "mine")
    shard = tmp_path / "mine" / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    model = str(tmp_path / "mine")
    found = as_json(doctor.examine(model=model))
    assert set(found) == KEYS and found["schema"] == 2
    text = json.dumps(found)
    assert "somebody" not in text and "<path>/libtorch.so" in text and "<path>/y" in text
    assert host not in text or len(host) < 3
    assert sys.prefix not in text and str(Path.home()) + "/" not in text.replace(model, "")
    assert found["model"]["asked"] == model  # type: ignore[index]
    answers.values[probing.CARDS]["archs"] = ["sm90"]
    assert "https://download.pytorch.org/whl/cu130" in json.dumps(as_json(doctor.examine()))


@pytest.mark.parametrize("rich", ["15.0.0", None])
def test_colours_are_only_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rich: str | None
) -> None:
    answers = faked(gpu())
    answers.libraries["rich"] = libraries.Library("rich", rich, None if rich else "not installed")
    put(monkeypatch, answers=answers)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["doctor"]) == (0 if rich else 1)
    said = capsys.readouterr().out
    assert "Faked GPU (sm120)" in said and ("\x1b[1mops\x1b[0m" if rich else "\nops\n") in said
    assert rich or "rich: not installed\n    do: pip install 'rich>=13.7'" in said
