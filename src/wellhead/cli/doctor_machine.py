"""The doctor on the machine: libraries, whether they fit each other and the cards, the driver, links between cards."""

from __future__ import annotations

import platform
from typing import Any

from wellhead.cli.doctor_report import Problem, Report
from wellhead.dispatch import capability, probing
from wellhead.dispatch.capability import Card
from wellhead.dispatch.driver import LEAST_DRIVER
from wellhead.dispatch.libraries import SERVING, SUPPORTED, Library, pinned

_SERVER_EXTRA = "pip install 'wellhead[serve]'"
_CUDA_BUILD = "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu130"


def examine(report: Report) -> None:
    """Fill in card and features; problems and notes."""
    for library in report.libraries:
        _library(report, library)
    _pin(report)
    facts = report.answers.values.get(probing.CARDS) or {}
    _driver(report, facts)
    card, report.card = _card(report, facts)
    report.features = capability.features_of(
        card, report.answers.of("triton").version,
        bool(report.answers.values.get(probing.INTERPRETER)) and report.simulate is None,
    )  # fmt: skip
    _architectures(report, facts, card)
    _links(report)


def _library(report: Report, library: Library) -> None:
    if library.problem is None:
        return
    if library.name in SERVING and library.problem == "not installed":
        report.notes.append(f"{library.name} is not installed; `wellhead serve` needs it: {_SERVER_EXTRA}")
        return
    if library.name == "triton" and platform.system() != "Linux":
        report.notes.append("Triton has wheels for Linux only; elsewhere models run in torch on the CPU")
        return
    oldest, beyond = SUPPORTED[library.name]
    wanted = f"{library.name}>={oldest}" + (f",<{beyond}" if beyond else "")
    again = "--force-reinstall " if library.problem.startswith("broken") else "--upgrade " if library.version else ""
    fix = f"pip install {again}'{wanted}'" if library.name != "python" else f"install Python {oldest} or newer"
    report.problems.append(Problem(library.name, library.problem, fix))


def _pin(report: Report) -> None:
    torch, triton = report.answers.of("torch"), report.answers.of("triton")
    report.pin = pinned("triton", by="torch") if torch.version else None
    if report.pin is None or triton.version is None or report.pin == triton.version.split("+")[0]:
        return
    said = f"torch {torch.version} asks for Triton {report.pin}, installed is {triton.version}"
    if report.pin.split(".")[:2] != triton.version.split(".")[:2]:
        report.problems.append(Problem("triton", said, f"pip install triton=={report.pin}"))
    else:
        report.notes.append(f"{said}; the same minor version, which does")


def _driver(report: Report, facts: dict[str, Any]) -> None:
    found, simulated = report.driver, report.simulate is not None
    if found.problem is not None:
        if simulated or not found.installed:
            report.notes.append(f"driver: {found.problem}")
        else:
            fix = "load or update NVIDIA's driver (a restart after an update), then run nvidia-smi"
            report.problems.append(Problem("driver", found.problem, fix))
        return
    cuda, branch = facts.get("cuda"), (found.version or "").split(".")[0]
    least = LEAST_DRIVER.get(int(str(cuda).split(".")[0])) if cuda else None
    if least is not None and branch.isdigit() and int(branch) < least:
        said = f"driver {found.version} is older than {least}, which torch's CUDA {cuda} needs"
        report.problems.append(Problem("driver", said, f"update the driver to {least} or newer"))
    elif not simulated and probing.CARDS in report.answers.values and not facts.get("cards"):
        built = f"was built for CUDA {cuda}" if cuda else "is a CPU build"
        said = f"the driver lists {len(found.gpus)} cards, torch sees none: it {built}"
        fix = _CUDA_BUILD if not cuda else "look at CUDA_VISIBLE_DEVICES, and at nvidia-smi and dmesg for errors"
        report.problems.append(Problem("torch", said, fix))


def _card(report: Report, facts: dict[str, Any]) -> tuple[Card | None, str]:
    if report.simulate is not None:
        card = capability.simulated(report.simulate)
        return card, str(card)
    if report.answers.of("torch").version is None:
        return None, "unknown: torch is needed to ask"
    if probing.CARDS in report.answers.failed:
        said = f"asking the driver {report.answers.failed[probing.CARDS]}"
        report.problems.append(Problem("card", said, "see what nvidia-smi says; reinstall the driver, then torch"))
        return None, "unknown: the driver does not answer"
    if not facts.get("cards"):
        return None, "none"
    own = facts["cards"][facts["current"]]
    card = Card(own["name"], own["arch"], shared_bytes=own["shared_bytes"])
    return card, str(card)


def _architectures(report: Report, facts: dict[str, Any], card: Card | None) -> None:
    wanted = {one["arch"] for one in facts.get("cards", ())}
    if report.simulate is not None:
        wanted = {report.simulate}
    built = facts.get("archs") or ()
    torch = report.answers.of("torch").version
    if card is not None and torch is not None and not facts.get("cuda"):
        report.notes.append(f"torch {torch} is a CPU build; for a card {_CUDA_BUILD}")
    for arch in sorted(wanted):
        if built and not capability.has_kernels(built, arch):
            said = f"torch {torch} has no kernels for {arch}, it was built for {', '.join(built)}"
            report.problems.append(Problem("torch", said, _CUDA_BUILD))
        if arch not in capability.ARCHITECTURES:
            said = f"{arch} has no profile, so nothing is known to run on it"
            fix = f"use one of {', '.join(capability.ARCHITECTURES)}, or --device cpu"
            report.problems.append(Problem("card", said, fix))
    if report.simulate is None and len(wanted) > 1:
        report.notes.append(f"the cards differ ({', '.join(sorted(wanted))}); ranks of one model need cards alike")


def _links(report: Report) -> None:
    gpus = report.driver.gpus
    for gpu in gpus:
        if gpu.pcie_width is not None and gpu.pcie_width_most is not None and gpu.pcie_width < gpu.pcie_width_most:
            report.notes.append(
                f"card {gpu.index} hangs on {gpu.pcie_width} of {gpu.pcie_width_most} PCIe lanes: loading and sums "
                "over ranks are slower; try another slot, riser or BIOS setting"
            )
        if gpu.memory_mib and gpu.used_mib is not None and gpu.used_mib > gpu.memory_mib // 20:
            report.notes.append(f"card {gpu.index}: {gpu.used_mib} of {gpu.memory_mib} MiB are in use by others")
    peers = report.driver.peers or report.answers.values.get(probing.CARDS, {}).get("peers", ())
    apart = sorted(
        f"{i}-{j}" for i, row in enumerate(peers) for j, word in enumerate(row) if i < j and word not in ("OK", True)
    )
    if apart:
        report.notes.append(
            f"no peer access between cards {', '.join(apart)}: sums over ranks go through the host's memory; look at "
            "the BIOS (IOMMU, ACS) if these cards should have it"
        )
