"""The choice of an implementation, made once when a model is built, with every reason kept."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wellhead.dispatch.features import Features
from wellhead.dispatch.spec import REFERENCE, Impl, OpSpec, Sizes


class NoImplementation(ValueError):
    """Nothing that an op has can run here, or what was asked for cannot."""


@dataclass(frozen=True)
class Choice:
    """What runs and why, and what did not fit and why not, in order of preference."""

    op: str
    impl: str
    reason: str
    rejected: tuple[tuple[str, str], ...]


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

    forced: that implementation, or NoImplementation with the reason. Otherwise the first of `spec.impls` that
    fits. The reference counts as fitting only where kernels cannot run at all or the op has none: on a card whose
    kernels all refuse, NoImplementation lists the reasons, because a model that quietly runs one op in plain torch
    looks healthy and is not.
    """
    if forced is not None:
        why = reason_against(spec.impl(forced), features, sizes)
        if why is not None:
            raise NoImplementation(
                f"op {spec.name!r}: {forced!r} was asked for and cannot run on {features.where}: {why}"
            )
        return Choice(spec.name, forced, "asked for by name", ())
    rejected: list[tuple[str, str]] = []
    for impl in spec.impls:
        if impl.name == REFERENCE:
            break
        why = reason_against(impl, features, sizes)
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
        f"op {spec.name!r}: no kernel fits sizes {dict(sizes)} on {features.where}: {listed}. "
        f"To run it in plain torch all the same, ask for {spec.name}={REFERENCE}."
    )


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
            raise ValueError(f"--impl {option!r}: no op {op!r}; the nearest is {near[0] if near else 'none'}")
        if forced.get(op, name) != name:
            raise ValueError(f"--impl: op {op!r} is given both {forced[op]!r} and {name!r}; keep one")
        forced[op] = by_name[op].impl(name).name
    return forced
