"""The doctor on a model: what it is, whether its files are whole, and how many of which cards hold it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from wellhead.cli.doctor_report import ModelReport, Problem, Report
from wellhead.dispatch import capability, cards, probing
from wellhead.dispatch.spec import Sizes

if TYPE_CHECKING:
    from wellhead.model.config import ModelConfig
    from wellhead.model.locate import NamedConfig

FRACTION, CONTEXT = 0.9, 8192
_PLAN = "`wellhead plan {} --gpu NAME` says which cards do"
HEADROOM = 1.05  # of a download's bytes over its tensors'


def examine(report: Report, model: str) -> tuple[ModelReport, Mapping[str, Sequence[Sizes]]]:
    """(what is known, {op: the sizes that a rank of it uses the op with}); whatever breaks is a problem of the report.
    """
    found = ModelReport(model)
    config = _identified(report, found)
    if config is None:
        return found, {}
    try:
        return found, _uses(found, config)
    except ValueError:  # a split that the model does not take
        return found, {}


def _uses(found: ModelReport, config: ModelConfig) -> Mapping[str, Sequence[Sizes]]:
    """On as many of the first cards that hold it as it takes, or on one."""
    from wellhead.model.choices import uses_of
    from wellhead.model.split import Split

    return uses_of(config, Split(0, next((row["needed"] for row in found.memory if row["needed"]), 1)))


def _identified(report: Report, found: ModelReport) -> ModelConfig | None:
    """Fill in everything; the configuration of a model that can be looked at closely."""
    model = found.asked
    try:
        from wellhead.model.identify import identify
        from wellhead.model.locate import find_config

        named = find_config(model, online=report.answers.of("huggingface_hub").version is not None)
        identity = identify(named.raw, named.folder)
    except (ValueError, OSError, ImportError) as error:
        fix = "name a folder, a config.json, a hub id, v4-flash or v4-pro"
        report.problems.append(Problem("checkpoint", str(error), fix))
        return None
    found.kind, found.title, found.runs = identity.kind, identity.title, identity.runs
    found.why, found.evidence = identity.why, identity.evidence
    if not identity.runs:
        report.problems.append(Problem("checkpoint", f"{identity.title}: {identity.why}", identity.fix))
        return None
    missing = [name for name in ("torch", "triton") if report.answers.of(name).version is None]
    try:
        from wellhead.model.config_file import load_config

        config = load_config(named.raw)
    except ValueError as error:
        found.runs = False
        report.problems.append(Problem("checkpoint", str(error), "use an official config.json with its weights"))
        return None
    if missing:
        report.notes.append(f"files and memory are not looked at without {' and '.join(missing)}")
        return None
    try:
        _files(report, found, named, config)
        _memory(report, found, config)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # a finding like any other
        said = f"looking at it raised {type(error).__name__}: {error}"
        report.problems.append(Problem("checkpoint", said, "report this with the output of --json"))
        return None
    return config


def _files(report: Report, found: ModelReport, named: NamedConfig, config: ModelConfig) -> None:
    from wellhead.model.checkpoint import CheckpointError, open_checkpoint
    from wellhead.model.shard import ITEM_BYTES
    from wellhead.model.tensors import expected_tensors

    if named.folder is not None and any(named.folder.glob("*.safetensors*")):
        try:
            checkpoint = open_checkpoint(named.folder)
        except CheckpointError as error:
            found.runs, found.files = False, "not usable"
            report.problems.append(Problem("checkpoint", str(error), "download what is named again"))
            return
        found.files = f"complete, {checkpoint.nbytes / 1e9:.2f} GB in {len(checkpoint.tensors)} tensors"
        return
    needed = sum(ITEM_BYTES[each.dtype] * prod(each.shape) for each in expected_tensors(config))
    free = report.free_disk if named.folder is None else shutil.disk_usage(named.folder).free
    found.files = f"not here; a download of about {needed * HEADROOM / 1e9:.0f} GB"
    if free is not None and free < needed * HEADROOM:
        said = f"the download of about {needed * HEADROOM / 1e9:.0f} GB does not fit {free / 1e9:.1f} GB of free disk"
        if report.simulate is None:
            report.problems.append(Problem("disk", said, "free some, or set HF_HOME to a larger disk"))
        else:
            report.notes.append(said)


def _memory(report: Report, found: ModelReport, config: ModelConfig) -> None:
    kinds = _kinds(report)
    if not kinds:
        _host(report, found, config)
    for name, arch, memory, here in kinds:
        row = _held(config, report, arch, memory)
        found.memory.append({"card": name, "here": here, **row})
        if here is None or (row["needed"] is not None and row["needed"] <= here):
            continue
        said = f"{here} x {name} do not hold it" + (f", {row['needed']} would" if row["needed"] else "")
        if row["missing"]:
            said = f"{name} ({arch}) has no kernel yet for {', '.join(row['missing'])}"
        report.problems.append(Problem("memory", said, _PLAN.format(found.asked)))
    if report.simulate is not None and all(row["needed"] is None for row in found.memory):
        said = f"no number of known {report.simulate} cards holds and runs it"
        report.problems.append(Problem("memory", said, _PLAN.format(found.asked)))


def _host(report: Report, found: ModelReport, config: ModelConfig) -> None:
    """Without a card, torch holds every weight as fp32 in this host's memory."""
    from wellhead.model.tensors import expected_tensors

    packed = {"I8": 2}  # FP4 codes a byte
    needed = sum(4 * prod(each.shape) * packed.get(each.dtype, 1) for each in expected_tensors(config))
    held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    said = f"no card here: in torch on the CPU its weights take about {needed / 1e9:.1f} GB as fp32"
    report.notes.append(said)
    if needed > held:
        said = f"{said}, this host has {held / 1e9:.1f}"
        report.problems.append(Problem("memory", said, _PLAN.format(found.asked)))


def _kinds(report: Report) -> list[tuple[str, str, int, int | None]]:
    """(name, architecture, bytes, how many are here) of each kind of card; None here for simulated ones."""
    if report.simulate is not None:
        return [(card.name, card.arch, card.memory, None) for card in cards.of_arch(report.simulate)]
    seen: dict[tuple[str, str, int], int] = {}
    for one in (report.answers.values.get(probing.CARDS) or {}).get("cards", ()):
        key = one["name"], one["arch"], one["memory"]
        seen[key] = seen.get(key, 0) + 1
    return [(*key, count) for key, count in seen.items()]


def _held(config: ModelConfig, report: Report, arch: str, memory: int) -> dict[str, Any]:
    """The fewest such cards for one request of CONTEXT tokens, and the tokens that fit them."""
    from wellhead.model.fit import Fit, Wanted, fewest, fit
    from wellhead.model.numerics import Numerics
    from wellhead.model.split import Split

    features = capability.features_of(capability.Card(arch, arch, simulated=True), report.answers.of("triton").version)
    context = min(CONTEXT, config.max_position_embeddings)
    wanted = Wanted(int(memory * FRACTION), context, 1, (1,))

    def judge(split: Split) -> Fit:
        return fit(config, Numerics.named("checkpoint"), split, wanted, features)

    smallest, largest = fewest(config, judge, "width")
    if smallest is None:
        return {"needed": None, "tokens": 0, "missing": sorted(largest.missing) if largest else []}
    return {"needed": smallest.split.world, "tokens": smallest.plan.tokens, "missing": []}
