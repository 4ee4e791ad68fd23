"""The choice of an implementation, made once when a model is built, with every reason kept."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from wellhead.dispatch.features import Features
from wellhead.dispatch.spec import REFERENCE, Impl, OpSpec, Sizes

AUTO = "auto"
"""In place of an implementation's name: the first that fits."""

OTHER_NUMERICS = "other numerics than the checkpoint's on purpose: only where it is asked for by name"


class NoImplementation(ValueError):
    """Nothing that `op` has can run here, or what was asked for cannot."""

    def __init__(self, op: str, why: str):
        super().__init__(f"op {op!r}: {why}")
        self.op, self.why = op, why


@dataclass(frozen=True)
class Choice:
    """What runs and why, and what did not fit and why not, in order of preference; for `least` to `most` tokens."""

    op: str
    impl: str
    reason: str
    rejected: tuple[tuple[str, str], ...]
    least: int = 0
    most: int | None = None

    @property
    def when(self) -> str:
        """ "up to 64 tokens", "from 65 tokens on"; empty if always."""
        if self.most is not None:
            return f"{self.least} to {self.most} tokens" if self.least else f"up to {self.most} tokens"
        return f"from {self.least} tokens on" if self.least else ""

    @property
    def row(self) -> tuple[str, str, str]:
        """(operation, implementation, why), with every reason."""
        reasons = [self.reason, *(f"not {name}: {why}" for name, why in self.rejected)]
        return self.op, self.impl, (f"{self.when}: " if self.when else "") + "; ".join(reasons)


def reason_against(impl: Impl, features: Features, sizes: Sizes) -> str | None:
    """Why `impl` cannot run `sizes` on that place, None if it can. Exceptions of `impl.supports` propagate."""
    for name in impl.needs:
        if not features[name].present:
            return f"needs {features[name]}"
    if impl.shared_bytes:
        shared = features["shared_bytes"]
        if impl.shared_bytes > shared.value:
            return f"needs {impl.shared_bytes} B of shared memory a block; {shared}"
    return impl.supports(sizes)


def choose(spec: OpSpec, features: Features, sizes: Sizes, forced: str | None = None) -> Choice:
    """The implementation of `spec` for `sizes` on the place that `features` describes.

    forced: that implementation, or NoImplementation with the reason. Otherwise (AUTO) the first of `spec.impls` that
    fits and has the op's numerics. The reference counts as fitting only where kernels cannot run at all or the op has
    none: on a card whose kernels all refuse, NoImplementation lists the reasons, because a model that quietly runs one
    op in plain torch looks healthy and is not.
    """
    if forced not in (None, AUTO):
        why = reason_against(spec.impl(forced), features, sizes)
        if why is not None:
            raise NoImplementation(spec.name, f"{forced!r} was asked for and cannot run on {features.where}: {why}")
        return Choice(spec.name, forced, "asked for by name", ())
    rejected: list[tuple[str, str]] = []
    for impl in spec.impls:
        if impl.name == REFERENCE:
            break
        why = OTHER_NUMERICS if impl.reference is not None else reason_against(impl, features, sizes)
        if why is None:
            reason = f"first that fits on {features.where}"
            if impl.needs:
                reason += "; " + ", ".join(f"{features[n].name} {features[n].evidence}" for n in impl.needs)
            return Choice(spec.name, impl.name, reason, tuple(rejected))
        rejected.append((impl.name, why))
    if not rejected:
        return Choice(spec.name, REFERENCE, "the op has no kernels yet", ())
    if not features["kernels"].present:
        return Choice(spec.name, REFERENCE, f"kernels cannot run: {features['kernels'].detail}", tuple(rejected))
    listed = "; ".join(f"{name}: {why}" for name, why in rejected)
    raise NoImplementation(
        spec.name,
        f"no kernel fits sizes {dict(sizes)} on {features.where}: {listed}. "
        f"To run it in plain torch all the same, ask for {spec.name}={REFERENCE}.",
    )


def choose_each(
    spec: OpSpec, features: Features, every: Sequence[Sizes], forced: str | None = None
) -> tuple[Choice, ...]:
    """`choose` for an op that is used with each of the sizes in `every`, once for each range of `spec.steps`, or once
    for all where they are alike.

    forced must fit one range at least; the others then keep their own choice, which says so.
    """
    bounds = [0, *spec.steps]
    chosen: list[Choice] = []
    refused: list[NoImplementation] = []
    for index, least in enumerate(bounds):
        most = bounds[index + 1] - 1 if index + 1 < len(bounds) else None
        fixed = {"tokens": least if most is None else most} if spec.steps else {}
        sizes = [{**one, **fixed} for one in every]
        impls = tuple(replace(impl, supports=partial(_all_of, impl.supports, sizes)) for impl in spec.impls)
        within = replace(spec, impls=impls)
        try:
            found = choose(within, features, sizes[0], forced)
        except NoImplementation as error:
            if forced in (None, AUTO):
                raise
            refused.append(error)
            found = choose(within, features, sizes[0])
            found = replace(found, reason=f"{forced} was asked for and does not take these sizes; {found.reason}")
        chosen.append(replace(found, least=least, most=most))
    if len(refused) == len(bounds):
        raise refused[0]
    always = [replace(choice, least=0, most=None) for choice in chosen]
    return tuple(chosen if len(set(always)) > 1 else always[:1])


def _all_of(supports: Callable[[Sizes], str | None], every: Sequence[Sizes], _sizes: Sizes) -> str | None:
    return next((why for why in map(supports, every) if why is not None), None)


def wanted(impl: str | Mapping[str, str], specs: Sequence[OpSpec]) -> dict[str, str]:
    """{op: implementation or AUTO} for every op: `impl` is a name for all of them, or a mapping that leaves the rest to
    AUTO. ValueError names the ops and the implementations that exist.
    """
    if isinstance(impl, str):
        known = {AUTO, *(each.name for spec in specs for each in spec.impls)}
        if impl not in known:
            raise ValueError(f"implementation {impl!r} does not exist; there are {', '.join(sorted(known))}")
        impl = {spec.name: impl for spec in specs}
    forced = parse_forced([f"{op}={name}" for op, name in impl.items()], specs)
    return {spec.name: forced.get(spec.name, AUTO) for spec in specs}


def parse_forced(options: Iterable[str], specs: Sequence[OpSpec]) -> Mapping[str, str]:
    """Options "OP=NAME" (`--impl`) as {op: implementation}; ValueError for what does not exist or is said twice."""
    by_name = {spec.name: spec for spec in specs}
    forced: dict[str, str] = {}
    for option in options:
        op, equals, name = option.partition("=")
        if not equals or not op or not name:
            raise ValueError(f"--impl {option!r}: expected OP=NAME, for example topk={REFERENCE}")
        if op not in by_name:
            near = difflib.get_close_matches(op, by_name, n=1, cutoff=0.0)
            raise ValueError(
                f"--impl {option!r}: no op {op!r}; the nearest is {near[0] if near else 'none'} of {', '.join(by_name)}"
            )
        if forced.get(op, name) != name:
            raise ValueError(f"--impl: op {op!r} is given both {forced[op]!r} and {name!r}; keep one")
        forced[op] = name if name == AUTO else by_name[op].impl(name).name
    return forced
