"""`wellhead doctor`: what is installed, which cards, what they can do, which implementation every op takes, and whether
a model runs here; for each problem what to do about it.

It must work when everything else is broken. Libraries are imported in another process first, which may die of it
(`dispatch.probing`); only what survived that is imported here, and nothing that did not can be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from wellhead import environment
from wellhead.cli import doctor_machine, doctor_model, options
from wellhead.cli.doctor_report import Problem, Report, as_json, show
from wellhead.dispatch import capability, driver, libraries, probing
from wellhead.dispatch.choose import NoImplementation, choose_each, parse_forced
from wellhead.dispatch.spec import OpSpec, Sizes
from wellhead.integrations import ENGINES
from wellhead.integrations.doctor import show as show_engine

_EXAMPLES = """examples:
  wellhead doctor
  wellhead doctor ~/models/V4-Flash         # and whether this checkpoint runs here
  wellhead doctor v4-flash --simulate sm120 # on a card that is not here
  wellhead doctor --simulate sm121 --json
  wellhead doctor --impl topk=reference
  wellhead doctor --engine sglang

exit status: 0 healthy, 1 something is broken or nothing fits, 2 a bad option. --json names no host and no folder but
the MODEL given: paste it into a bug report.
"""
ASKED = (
    "torch", probing.CARDS, "triton", probing.INTERPRETER, *libraries.NEEDED[2:], probing.DISK, *libraries.SERVING
)  # fmt: skip


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what is installed, what the card can do, which kernels run and why",
        description="Report versions and whether they fit, the cards, their features with the evidence for each, for "
        "every op the implementation it would take and why, what a checkpoint is and whether it runs here.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="folder, config.json, hub id, v4-flash or v4-pro; without one the machine alone is looked at",
    )  # fmt: skip
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
    parser.set_defaults(run=run, survives=True)


def run(args: argparse.Namespace) -> int:
    if args.engine:
        return show_engine(args.engine, args.json)
    report = examine(args.simulate, args.impl, args.model)
    if args.json:
        print(json.dumps(as_json(report), indent=2))
    else:
        show(report)
    return 1 if report.problems else 0


def examine(simulate: str | None = None, impls: Sequence[str] = (), model: str | None = None) -> Report:
    """Look at this machine, or at a simulated card with this machine's libraries. ValueError for a bad `impls`."""
    answers = probing.ask(ASKED)
    report = Report([libraries.python(), *answers.libraries.values()], driver.query(), answers, simulate)
    without: tuple[str, ...] = ()
    try:
        without = environment.without(capability.ABILITIES)
    except ValueError as error:
        report.problems.append(Problem("environment", str(error), "rename or unset the variable"))
    doctor_machine.examine(report)
    if simulate is None:
        report.features = report.features.without(without, capability.TOLD)
    broken = [name for name, library in answers.libraries.items() if library.version is None]
    with _without(broken):
        uses: Mapping[str, Sequence[Sizes]] = {}
        if model is not None:
            report.model, uses = doctor_model.examine(report, model)
        _choose(report, impls, uses)
    return report


def _choose(report: Report, impls: Sequence[str], uses: Mapping[str, Sequence[Sizes]]) -> None:
    """Every op's choice for the sizes that a model uses it with, else for those of its first case."""
    specs = _specs(report)
    forced = parse_forced(impls, specs) if specs else {}
    for spec in specs:
        sizes = uses.get(spec.name) or [spec.cases[0].sizes if spec.cases else {}]
        try:
            report.choices += choose_each(spec, report.features, sizes, forced.get(spec.name))
        except NoImplementation as error:
            fix = f"another card, or --impl {error.op}=reference --eager, or --device cpu"
            report.problems.append(Problem(f"op {error.op}", error.why, fix))


def _specs(report: Report) -> list[OpSpec]:
    """Every op's SPEC that can be read; the others become problems. None can without torch, which is one already."""
    from wellhead.ops import registry

    if report.answers.of("torch").version is None:
        report.notes.append("ops: their SPECs cannot be read without torch")
        return []
    found = []
    for op in registry.OPS:
        try:
            found.append(registry.spec(op))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a broken library under an op may even exit; the rest must still be shown
            why = f"its SPEC cannot be read: {type(error).__name__}: {error}"
            report.problems.append(Problem(f"op {op}", why, "reinstall wellhead, or report this"))
    return found


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """What is known to be broken is not imported here: it may end the process."""
    hidden = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ModuleNotFoundError
    try:
        yield
    finally:
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
