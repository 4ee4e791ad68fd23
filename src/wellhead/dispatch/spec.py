"""What an op says about itself: its implementations, their compiled variants, its cases and its error budget.

Tests, the benchmark, the doctor and the generated tables read these records; nothing else describes an op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

REFERENCE = "reference"
"""The implementation in torch that every op has; it needs no feature."""

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class KernelBuild:
    """One compiled variant of a @triton.jit function, as shipped."""

    name: str  # unique within the op, e.g. "pre[d=4096]"
    kernel: Any  # the @triton.jit function
    signature: Mapping[str, str]  # every argument -> Triton type: "*bf16", "*u8", "i32", "fp32", "constexpr", ...
    constants: Mapping[str, Any]  # the constexpr values
    num_warps: int = 4
    num_stages: int = 2
    mma: Mapping[str, str] = field(default_factory=dict)
    """arch ("sm120", "sm90", ...) -> substring that the PTX must hold; empty = no tensor core claimed."""
    hot: bool = True  # on the decode path: spills are an error
    unit: str | None = None  # of `capability.has_unit`: no card without it is given this variant

    def __post_init__(self) -> None:
        constexpr = {name for name, kind in self.signature.items() if kind == "constexpr"}
        if constexpr != set(self.constants):
            raise ValueError(
                f"build {self.name!r}: the constexpr arguments are {sorted(constexpr)} but constants has "
                f"{sorted(self.constants)}; give every constexpr one value"
            )


@dataclass(frozen=True)
class Case:
    """One shape of an op, with hostile or ordinary contents, and what running it moves and computes."""

    name: str
    sizes: Sizes
    make: Callable[[Any, Any], Any]  # (torch.Generator, device) -> the op's inputs
    bytes: int = 0  # least number of bytes that must move through memory
    flops: int = 0


@dataclass(frozen=True)
class ErrorBudget:
    """|found - exact| <= absolute + relative * |exact|. Both zero: bits are compared."""

    relative: float
    absolute: float
    why: str


def no_builds() -> tuple[KernelBuild, ...]:
    return ()


def every_size(sizes: Sizes) -> str | None:
    return None


@dataclass(frozen=True)
class Impl:
    """One implementation of an op.

    needs are feature names (`dispatch.features`); shared_bytes is the most shared memory one of its kernels
    takes a block, compared with the feature of that name. supports(sizes) returns None or the reason why these
    sizes cannot run, naming what can; an exception in it is a bug and propagates. prepare(inputs of a case) plans and
    returns run(), which computes the op's output into tensors it owns and returns them, one or a tuple; or a function
    that reads them where the output is packed, so that run() itself is nothing but the op. reference, likewise, is the
    mathematics of an implementation whose numerics are not those of the op's reference on purpose.
    """

    name: str
    needs: tuple[str, ...] = ()
    shared_bytes: int = 0
    builds: Callable[[], tuple[KernelBuild, ...]] = no_builds
    supports: Callable[[Sizes], str | None] = every_size
    prepare: Callable[[Mapping[str, Any]], Callable[[], Any]] | None = None
    reference: Callable[[Mapping[str, Any]], Callable[[], Any]] | None = None


@dataclass(frozen=True)
class OpSpec:
    """An op: `impls` in order of preference, the reference last."""

    name: str
    summary: str
    impls: tuple[Impl, ...]
    cases: tuple[Case, ...]
    error: ErrorBudget
    batch_invariant: bool  # a row's bits do not depend on its neighbours
    batch_reason: str
    steps: tuple[int, ...] = ()
    """Numbers of tokens from which another of the implementations may fit: each range between them has its choice."""

    def __post_init__(self) -> None:
        names = [impl.name for impl in self.impls]
        if len(set(names)) != len(names) or names[-1:] != [REFERENCE]:
            raise ValueError(f"op {self.name!r}: impls are {names}; expected distinct names, {REFERENCE!r} last")

    def impl(self, name: str) -> Impl:
        """The implementation of that name; ValueError names those that exist."""
        for impl in self.impls:
            if impl.name == name:
                return impl
        raise ValueError(
            f"op {self.name!r} has no implementation {name!r}; there are {', '.join(i.name for i in self.impls)}"
        )
