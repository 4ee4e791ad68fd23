"""Features: named abilities of a card and its compiler, each with the evidence for it.

compiled: a probe was compiled for that architecture and the line it produced was read. queried: a driver or a
library was asked. assumed: neither; what is not known is assumed absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

MEANING: dict[str, str] = {
    "kernels": "Triton kernels can run: a card and a compiler, or Triton's interpreter",
    "interpreter": "Triton's interpreter is on: kernels run on the CPU, slowly",
    "shared_bytes": "shared memory one block may use, in bytes",
    "fp8_mma": "tl.dot of e4m3 x e4m3 runs on fp8 tensor cores",
    "block_scaled_mma": "tl.dot_scaled of e4m3 x e4m3 runs on block-scaled tensor cores (kind mxf8f6f4)",
    "fp8e4nv_conversion": "Triton converts e4m3 (fp8e4nv) to wider floats",
    "tma_load": "tensor descriptors load through the TMA unit",
    "pdl": "programmatic dependent launch",
    "cluster_shared": "blocks of a cluster reach each other's shared memory",
    "wgmma": "warp-group matrix instructions of Hopper",
    "tcgen05": "fifth-generation tensor cores with tensor memory (TMEM), data-centre Blackwell only",
}
"""Every feature there is. A name outside this table is a typing error."""


class Evidence(StrEnum):
    COMPILED = "compiled"
    QUERIED = "queried"
    ASSUMED = "assumed"


@dataclass(frozen=True)
class Feature:
    """One ability. `detail` is the line or number believed; `value` is set where the ability is a quantity."""

    name: str
    present: bool
    evidence: Evidence
    detail: str
    value: int = 0

    def __post_init__(self) -> None:
        if self.name not in MEANING:
            raise ValueError(f"feature {self.name!r} is not one of {', '.join(MEANING)}")

    def __str__(self) -> str:
        """`name present (compiled: mma.sync...)`."""
        return f"{self.name} {'present' if self.present else 'absent'} ({self.evidence}: {self.detail})"


@dataclass(frozen=True)
class Features(Mapping[str, Feature]):
    """All features of one place to run; `where` says which place, in a few words."""

    where: str
    known: tuple[Feature, ...]
    _by_name: dict[str, Feature] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {feature.name: feature for feature in self.known}
        missing = [name for name in MEANING if name not in by_name]
        if missing or len(by_name) != len(self.known):
            raise ValueError(
                f"features of {self.where}: each of {', '.join(MEANING)} is stated once; missing {missing}"
            )
        object.__setattr__(self, "_by_name", by_name)

    def __getitem__(self, name: str) -> Feature:
        if name not in self._by_name:
            raise ValueError(f"feature {name!r} is not one of {', '.join(MEANING)}")
        return self._by_name[name]

    def without(self, names: Sequence[str], why: str) -> Features:
        """The same with these absent."""
        absent = {name: Feature(name, False, Evidence.QUERIED, why) for name in names}
        return Features(self.where, tuple(absent.get(feature.name, feature) for feature in self.known))

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)
