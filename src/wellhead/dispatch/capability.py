"""Cards and what is known of them. The only file that reads a compute capability number.

The compiled facts were read from the PTX of one probe each (tests/dispatch/test_probes.py compiles them again
with the installed Triton). They hold for one architecture and one minor version of Triton: `sm_121` is the same
silicon generation as `sm_120`, and Triton 3.6 and 3.7 nevertheless lower its fp8 products to f16.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wellhead import environment
from wellhead.dispatch import libraries
from wellhead.dispatch.features import Evidence, Feature, Features

SHARED_BYTES = {
    "sm80": 166912, "sm86": 101376, "sm89": 101376, "sm90": 232448, "sm100": 232448, "sm120": 101376, "sm121": 101376
}  # fmt: skip
"""The most shared memory one block may ask for, opt-in limit (CUDA C programming guide, technical specifications)."""

ARCHITECTURES = tuple(SHARED_BYTES)
SHARED = "shared_memory_per_block_optin"  # of torch's device properties

_MMA = "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"
_BLOCK_SCALED = "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e4m3.f32.ue8m0"
_AS_F16 = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
_AS_BF16 = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
_NO_E4M3 = "CompilationError: type fp8e4nv not supported in this architecture"

# feature -> architecture -> (present, what the probe's PTX held). Same for every Triton in _PROBED unless _DIFFERS.
_COMPILED: dict[str, dict[str, tuple[bool, str]]] = {
    "fp8_mma": {
        "sm80": (False, _NO_E4M3),
        "sm86": (False, _NO_E4M3),
        "sm89": (True, _MMA),
        "sm90": (True, "wgmma.mma_async.sync.aligned (e4m3.e4m3)"),
        "sm100": (True, "tcgen05.mma.cta_group::1.kind::f8f6f4"),
        "sm120": (True, _MMA),
        "sm121": (True, _MMA),
    },
    "block_scaled_mma": {
        "sm80": (False, _NO_E4M3),
        "sm86": (False, _NO_E4M3),
        "sm89": (False, f"lowered to {_AS_BF16}"),
        "sm90": (False, "lowered to wgmma of bf16.bf16"),
        "sm100": (True, "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale"),
        "sm120": (True, _BLOCK_SCALED),
        "sm121": (True, _BLOCK_SCALED),
    },
    "fp8e4nv_conversion": {
        "sm80": (False, _NO_E4M3),
        "sm86": (False, _NO_E4M3),
        **{arch: (True, "cvt.rn.f16x2.e4m3x2") for arch in ARCHITECTURES[2:]},
    },
    "tma_load": {
        **{arch: (False, "descriptor loads lowered to plain loads") for arch in ("sm80", "sm86", "sm89")},
        **{arch: (True, "cp.async.bulk.tensor.2d") for arch in ("sm90", "sm100", "sm120", "sm121")},
    },
}
_DIFFERS: dict[tuple[str, str], dict[str, tuple[bool, str]]] = {
    ("sm121", minor): {
        "fp8_mma": (False, f"lowered to {_AS_F16}; Triton 3.9 brings it"),
        "block_scaled_mma": (False, f"lowered to {_AS_BF16}; Triton 3.9 brings it"),
    }
    for minor in ("3.6", "3.7")
}
_PROBED = ("3.6", "3.7", "3.9")

# What Triton's compiler is not asked for: the architecture either has the unit or not (PTX ISA, target notes).
_UNITS: dict[str, tuple[str, ...]] = {
    "cluster_shared": ("sm90", "sm100"),
    "wgmma": ("sm90",),
    "tcgen05": ("sm100",),
    "pdl": ("sm90", "sm100", "sm120", "sm121"),
}

ABILITIES = (*_COMPILED, *_UNITS)
"""The features that a process can do without."""
TOLD = "WELLHEAD_WITHOUT names it"


@dataclass(frozen=True)
class Card:
    """A card: the product's name, its architecture ("sm120"), and what the driver says of it, if one was asked."""

    name: str
    arch: str
    simulated: bool = False
    shared_bytes: int | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.arch}{', simulated' if self.simulated else ''})"


def arch_of(capability: tuple[int, int]) -> str:
    """(12, 1) -> "sm121". A number that has no profile still gets its name, and with it no features."""
    return f"sm{capability[0]}{capability[1]}"


def simulated(arch: str) -> Card:
    """A card to ask "what if"; ValueError names the architectures with a profile."""
    if arch not in ARCHITECTURES:
        raise ValueError(f"no profile of {arch!r}; there are {', '.join(ARCHITECTURES)}")
    return Card(f"some {arch} card", arch, simulated=True)


def detect() -> Card | None:
    """The current CUDA card of this process, None without one. Imports torch; what that raises propagates."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    shared = getattr(properties, SHARED, None)
    return Card(properties.name, arch_of(torch.cuda.get_device_capability()), shared_bytes=shared)


def l2_bytes(device: Any) -> int:
    """Bytes of the L2 of a CUDA device."""
    import torch

    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def asked_of_torch() -> dict[str, Any]:
    """What torch and the driver say when they are asked for everything; what they raise propagates.

    cuda: the version torch was built for, None for a CPU build. archs: those it has kernels for, "sm120" for "sm_120".
    cards: name, arch, memory in bytes and shared_bytes of each. current: the index of the one in use. peers: for each
    card whether it reaches each other card's memory.
    """
    import torch

    found: dict[str, Any] = {"cuda": torch.version.cuda, "archs": [], "cards": [], "current": 0, "peers": []}
    if not torch.cuda.is_available():
        return found
    found["archs"] = [name.replace("_", "") for name in torch.cuda.get_arch_list()]
    count = torch.cuda.device_count()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        found["cards"].append({
            "name": properties.name, "arch": arch_of(torch.cuda.get_device_capability(index)),
            "memory": properties.total_memory, "shared_bytes": getattr(properties, SHARED, None),
        })  # fmt: skip
    found["current"] = torch.cuda.current_device()
    reaches = torch.cuda.can_device_access_peer
    found["peers"] = [[one == other or reaches(one, other) for other in range(count)] for one in range(count)]
    return found


def has_kernels(archs: Sequence[str], arch: str) -> bool:
    """Whether a library built for `archs` ("sm90", "sm120", "compute90") runs on a card: built for it, for a smaller
    minor number of its generation, or with PTX of an older one; "sm90a" and "compute90a" for that one alone.
    """
    major, minor = int(arch[2:-1]), int(arch[-1])
    for built in archs:
        kind, number = built.rstrip("af").partition("sm")[1] or "compute", re.sub(r"\D", "", built)
        theirs = (int(number[:-1]), int(number[-1]))
        older = theirs[0] == major and theirs[1] < minor if kind == "sm" else theirs < (major, minor)
        if theirs == (major, minor) or (older and not built.endswith("a")):
            return True
    return False


def here() -> Features:
    """The features of this process: its card's, its Triton's or its interpreter's, less what WELLHEAD_WITHOUT names."""
    triton = libraries.probe("triton").version
    found = features_of(detect(), triton, triton is not None and libraries.interpreter_on())
    return found.without(environment.without(ABILITIES), TOLD)


def host() -> Features:
    """The features of a model that torch computes on the CPU, whatever card is there."""
    return _without("CPU only", "the model is on the CPU")


def features_of(card: Card | None, triton: str | None, interpreter: bool = False) -> Features:
    """The features of `card` (None: only a CPU) with that version of Triton (None: there is none that works).

    With the interpreter on, kernels run on the CPU whatever the card: every number format works, and no unit of a
    card that a result cannot depend on is claimed.
    """
    if interpreter:
        return _interpreted(triton)
    if card is None:
        return _without("CPU only", "no CUDA card")
    if triton is None:
        return _without(str(card), "Triton is missing or broken")
    known = [
        Feature("kernels", True, _asked(card), f"{card.arch}, Triton {triton}"),
        Feature("interpreter", False, Evidence.QUERIED, "TRITON_INTERPRET is not set"),
        _shared(card),
        *(_compiled(name, card, triton) for name in _COMPILED),
        *(_unit(name, card) for name in _UNITS),
    ]
    return Features(str(card), tuple(known))


def _asked(card: Card) -> Evidence:
    return Evidence.ASSUMED if card.simulated else Evidence.QUERIED


def _shared(card: Card) -> Feature:
    if card.shared_bytes is not None:
        return Feature("shared_bytes", True, Evidence.QUERIED, f"{card.shared_bytes} B", card.shared_bytes)
    if card.arch in SHARED_BYTES:
        known = SHARED_BYTES[card.arch]
        return Feature("shared_bytes", True, Evidence.ASSUMED, f"{known} B, the documented limit of {card.arch}", known)
    return Feature(
        "shared_bytes", True, Evidence.ASSUMED, f"49152 B, what every card has; {card.arch} has no profile", 49152
    )


def _compiled(name: str, card: Card, triton: str) -> Feature:
    minor = ".".join(triton.split(".")[:2])
    if card.arch not in _COMPILED[name]:
        return Feature(name, False, Evidence.ASSUMED, f"{card.arch} has no profile; unknown is absent")
    if minor not in _PROBED:
        return Feature(name, False, Evidence.ASSUMED, f"not probed with Triton {triton}; unknown is absent")
    present, line = _DIFFERS.get((card.arch, minor), {}).get(name, _COMPILED[name][card.arch])
    return Feature(name, present, Evidence.COMPILED, f"{line} (Triton {minor}, {card.arch})")


def _unit(name: str, card: Card) -> Feature:
    if card.arch not in ARCHITECTURES:
        return Feature(name, False, Evidence.ASSUMED, f"{card.arch} has no profile; unknown is absent")
    present = has_unit(name, card.arch)
    note = f"{card.arch} {'has' if present else 'does not have'} it (PTX ISA)"
    return Feature(name, present, Evidence.ASSUMED, note)


def has_unit(name: str, arch: str) -> bool:
    """Whether cards of that architecture have "cluster_shared", "wgmma", "tcgen05" or "pdl"."""
    return arch in _UNITS[name]


def _without(where: str, why: str) -> Features:
    names = ("kernels", "interpreter", "shared_bytes", *ABILITIES)
    return Features(where, tuple(Feature(name, False, Evidence.QUERIED, why) for name in names))


def _interpreted(triton: str | None) -> Features:
    if triton is None:
        return _without("CPU only", "Triton is missing or broken")
    numbers = {"fp8_mma", "block_scaled_mma", "fp8e4nv_conversion"}
    detail = f"TRITON_INTERPRET is set, Triton {triton}"
    shared = "the interpreter has no shared memory; SM120's limit is kept"
    known = [
        Feature("kernels", True, Evidence.QUERIED, detail),
        Feature("interpreter", True, Evidence.QUERIED, detail),
        Feature("shared_bytes", True, Evidence.ASSUMED, shared, SHARED_BYTES["sm120"]),
        *(
            Feature(n, n in numbers, Evidence.ASSUMED, "computed by the interpreter" if n in numbers else "interpreter")
            for n in ABILITIES
        ),
    ]
    return Features("the CPU, under Triton's interpreter", tuple(known))
