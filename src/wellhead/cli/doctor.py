"""`wellhead doctor`: what is installed, which card, what it can do, and which implementation every op takes.

It must work when everything else is broken: outside guarded probes it imports the standard library and
`wellhead.dispatch`, which imports no more than that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from wellhead import __version__
from wellhead.cli import options
from wellhead.dispatch import capability, libraries
from wellhead.dispatch.choose import Choice, NoImplementation, choose_each, parse_forced
from wellhead.dispatch.features import Features
from wellhead.dispatch.spec import OpSpec
from wellhead.integrations import ENGINES
from wellhead.integrations.doctor import show

_EXAMPLES = """examples:
  wellhead doctor
  wellhead doctor --simulate sm120
  wellhead doctor --simulate sm121 --json
  wellhead doctor --impl topk=reference
  wellhead doctor --engine sglang

exit status: 0 healthy, 1 something is broken or an op has nothing that fits, 2 a bad option
"""


@dataclass
class Report:
    """Everything the doctor found. `problems` empty means healthy."""

    libraries: list[libraries.Library]
    card: str
    features: Features
    choices: list[Choice] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what is installed, what the card can do, which kernels run and why",
        description="Report versions, the card, its features with the evidence for each, and for every op the "
        "implementation it would take and why.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--simulate",
        metavar="ARCH",
        choices=capability.ARCHITECTURES,
        help=f"answer for a card that is not here: {', '.join(capability.ARCHITECTURES)}",
    )
    options.add_impl(parser)
    parser.add_argument("--engine", choices=ENGINES, help="what our ops would replace in that engine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_debug(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.engine:
        return show(args.engine, args.json)
    report = examine(args.simulate, args.impl)
    print(json.dumps(as_json(report), indent=2) if args.json else as_text(report))
    return 1 if report.problems else 0


def examine(simulate: str | None = None, impls: Sequence[str] = ()) -> Report:
    """Look at this machine, or at a simulated card with this machine's libraries. ValueError for a bad `impls`."""
    python, torch, triton = libraries.python(), libraries.probe("torch"), libraries.probe("triton")
    problems = [f"{found.name}: {found.problem}" for found in (python, torch, triton) if found.problem]
    interpreter = triton.version is not None and libraries.interpreter_on()
    card, said = _card(simulate, torch, problems)
    features = capability.features_of(card, triton.version, interpreter and simulate is None)
    report = Report([python, torch, triton], said, features, problems=problems)
    specs = _specs(problems)
    forced = parse_forced(impls, specs)
    for spec in specs:
        sizes = spec.cases[0].sizes if spec.cases else {}
        try:
            report.choices += choose_each(spec, features, [sizes], forced.get(spec.name))
        except NoImplementation as error:
            problems.append(str(error))
    return report


def _card(simulate: str | None, torch: libraries.Library, problems: list[str]) -> tuple[capability.Card | None, str]:
    if simulate is not None:
        card = capability.simulated(simulate)
        return card, str(card)
    if torch.version is None:
        return None, "unknown: torch is needed to ask"
    try:
        found = capability.detect()
    except Exception as error:  # a driver that does not answer is a finding, not a crash
        problems.append(f"card: asking the driver raised {type(error).__name__}: {error}")
        return None, "unknown: the driver does not answer"
    return found, str(found) if found else "none"


def _specs(problems: list[str]) -> list[OpSpec]:
    """Every op's SPEC that can be read; the others become problems."""
    from wellhead.ops import registry

    found = []
    for op in registry.OPS:
        try:
            found.append(registry.spec(op))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a broken torch under an op may even exit; the rest must still be shown
            problems.append(f"op {op!r}: its SPEC cannot be read: {type(error).__name__}: {error}")
    return found


def as_text(report: Report) -> str:
    lines = [f"wellhead {__version__}"]
    for library in report.libraries:
        lines.append(f"{library.name:8} {library.version or '-'}{'  ' + library.problem if library.problem else ''}")
    lines += [f"card     {report.card}", "", f"features on {report.features.where}"]
    for feature in report.features.values():
        mark = "yes" if feature.present else "no"
        lines.append(f"  {feature.name:18} {mark:3}  {feature.evidence:8}  {feature.detail}")
    lines += ["", "ops"]
    for choice in report.choices:
        lines.append(f"  {choice.op:18} {choice.impl:12} {choice.when + ': ' if choice.when else ''}{choice.reason}")
        lines += [f"  {'':18}   not {name}: {why}" for name, why in choice.rejected]
    lines += ["", "healthy" if not report.problems else "problems"]
    lines += [f"  {problem}" for problem in report.problems]
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, object]:
    return {
        "wellhead": __version__,
        "executable": sys.executable,
        "libraries": [asdict(library) for library in report.libraries],
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
        "problems": report.problems,
        "healthy": not report.problems,
    }
