"""What the doctor found, in words and as JSON."""

from __future__ import annotations

import re
import socket
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wellhead import __version__
from wellhead.dispatch import capability, probing
from wellhead.dispatch.choose import Choice
from wellhead.dispatch.driver import Driver
from wellhead.dispatch.features import Features
from wellhead.dispatch.libraries import Library
from wellhead.dispatch.probing import Answers

SCHEMA = 2
_PATH = re.compile(r"(?<![\w.:/*<>-])(?:~/|/)(?:[^\s:'\"(),/;]+/)+([^\s:'\"(),/;]*)")


@dataclass(frozen=True)
class Problem:
    """What it is about ("torch", "op moe", "checkpoint"), what is wrong, and what to do."""

    about: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.about}: {self.what}"


@dataclass
class ModelReport:
    """A checkpoint. `files` says what was found of them; `memory` is, for each kind of card, how many it takes."""

    asked: str
    kind: str = "unreadable"
    title: str = ""
    runs: bool = False
    why: str = ""
    evidence: tuple[str, ...] = ()
    files: str = ""
    memory: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Report:
    """Everything the doctor found. `problems` empty means healthy; notes are worth knowing."""

    libraries: list[Library]
    driver: Driver
    answers: Answers
    simulate: str | None = None
    card: str = ""
    features: Features = field(default_factory=capability.host)
    pin: str | None = None  # the Triton that torch asks for
    choices: list[Choice] = field(default_factory=list)
    model: ModelReport | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def free_disk(self) -> int | None:
        """Bytes, where the hub's downloads go."""
        found = self.answers.values.get(probing.DISK)
        return found if isinstance(found, int) else None


def lines(report: Report) -> list[tuple[str, str]]:
    """(style for those who have rich, text) of each line; the styles carry nothing that the text does not say."""
    said = [("bold", f"wellhead {__version__}")]
    for library in report.libraries:
        pin = f"  torch asks for {report.pin}" if library.name == "triton" and report.pin else ""
        mark = "red" if library.problem else ""
        said.append((mark, f"{library.name:18} {library.version or '-'}{pin}{'  ' + (library.problem or '')}".rstrip()))
    said += [("", f"{'driver':18} {report.driver.version or '-'}"), ("", f"card     {report.card}")]
    for gpu in report.driver.gpus:
        memory = f"{gpu.memory_mib} MiB" if gpu.memory_mib else "memory unknown"
        said.append(("", f"  {gpu.index}: {gpu.name}, {gpu.arch or 'unknown'}, {memory}, {gpu.link}"))
    if report.driver.peers:
        said += [("", f"  peers of {i}: {' '.join(row)}") for i, row in enumerate(report.driver.peers)]
    if report.free_disk is not None:
        said.append(("", f"disk     {report.free_disk / 1e9:.1f} GB free for downloads"))
    said += [("", ""), ("bold", f"features on {report.features.where}")]
    for feature in report.features.values():
        mark = "yes" if feature.present else "no"
        said.append(("", f"  {feature.name:18} {mark:3}  {feature.evidence:8}  {feature.detail}"))
    said += [("", ""), ("bold", "ops")]
    for choice in report.choices:
        when = choice.when + ": " if choice.when else ""
        said.append(("", f"  {choice.op:18} {choice.impl:12} {when}{choice.reason}"))
        said += [("dim", f"  {'':18}   not {name}: {why}") for name, why in choice.rejected]
    if report.model is not None:
        said += [("", ""), ("bold", f"model {report.model.asked}"), *_model(report.model)]
    if report.notes:
        said += [("", ""), ("bold", "notes"), *(("", f"  {note}") for note in report.notes)]
    said += [("", ""), ("bold green", "healthy") if not report.problems else ("bold red", "problems")]
    for problem in report.problems:
        said += [("red", f"  {problem}"), ("", f"    do: {problem.fix}")]
    return said


def _model(model: ModelReport) -> list[tuple[str, str]]:
    said = [("", f"  {model.title or model.kind}: {'runs' if model.runs else 'does not run'}")]
    said += [("", f"  {model.why}")] if model.why else []
    said += [("dim", f"  believed: {each}") for each in model.evidence]
    said += [("", f"  files: {model.files}")] if model.files else []
    for row in model.memory:
        if row["needed"] is None:
            said.append(("", f"  memory: no number of {row['card']} holds it"))
        else:
            here = "" if row["here"] is None else f" ({row['here']} here)"
            said.append(("", f"  memory: {row['needed']} x {row['card']}{here}, {row['tokens']:,} tokens then"))
    return said


def as_text(report: Report) -> str:
    return "\n".join(text for _, text in lines(report))


def show(report: Report) -> None:
    """Print it: in colours on a terminal with rich, in plain text wherever rich is missing or breaks."""
    rich = report.answers.of("rich")
    if sys.stdout.isatty() and rich.fits:
        try:
            from rich.console import Console
            from rich.text import Text

            console = Console(soft_wrap=True, highlight=False)
            for style, text in lines(report):
                console.print(Text(text, style))
            return
        except Exception:  # it is only the colours
            pass
    print(as_text(report))


def as_json(report: Report) -> dict[str, object]:
    """Stable keys; no host name, and no path but the MODEL that was given."""
    found: dict[str, object] = {
        "schema": SCHEMA,
        "wellhead": __version__,
        "simulated": report.simulate,
        "libraries": [asdict(library) for library in report.libraries],
        "triton_pinned_by_torch": report.pin,
        "torch": report.answers.values.get(probing.CARDS),
        "driver": report.driver.version,
        "gpus": [asdict(gpu) for gpu in report.driver.gpus],
        "peers": report.driver.peers,
        "free_disk": report.free_disk,
        "card": report.card,
        "where": report.features.where,
        "features": [asdict(feature) for feature in report.features.values()],
        "ops": [
            {
                "op": c.op,
                "tokens": c.when or "any",
                "impl": c.impl,
                "reason": c.reason,
                "rejected": [{"impl": name, "reason": why} for name, why in c.rejected],
            }
            for c in report.choices
        ],
        "model": None if report.model is None else asdict(report.model),
        "notes": report.notes,
        "problems": [asdict(problem) for problem in report.problems],
        "healthy": not report.problems,
    }
    return {key: _redacted(value, report.model.asked if report.model else None) for key, value in found.items()}


def _redacted(value: Any, keep: str | None) -> Any:
    """Without this host's name and without folders, but those of `keep`."""
    if isinstance(value, dict):
        return {key: _redacted(part, keep) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(part, keep) for part in value]
    if not isinstance(value, str):
        return value
    if keep and keep in value:
        return keep.join(_redacted(part, None) for part in value.split(keep))
    host = socket.gethostname()
    plain = re.sub(rf"\b{re.escape(host)}\b", "<host>", value) if len(host) > 2 else value
    for folder in (sys.prefix, str(Path(__file__).parents[2]), str(Path.cwd()), str(Path.home())):
        plain = plain.replace(f"{folder}/", "<path>/") if len(folder) > 1 else plain  # whose names may hold spaces
    return _PATH.sub(r"<path>/\1", plain)
