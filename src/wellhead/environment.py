"""The environment variables of wellhead: all of them, and the only place that reads any.

A variable whose name begins with WELLHEAD_ and is not in `VARIABLES` is an error that names the nearest
known one, so that a typo cannot quietly mean the default. Options of commands and functions are the API; a
variable is added here only for what cannot be an argument.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence

PREFIX = "WELLHEAD_"

VARIABLES: dict[str, str] = {
    "WELLHEAD_MODEL": "checkpoint folder or hub id that commands load when --model is not given",
    "WELLHEAD_OPS": "groups of ops that an engine's plugin replaces, by commas, or all; unset: none",
    "WELLHEAD_WITHOUT": "features of the card that are not used, by commas (pdl, for one); unset: none",
    "WELLHEAD_ON_MISMATCH": "stop (the default) or go-on, where an engine does not fit an op of WELLHEAD_OPS",
}


def check() -> None:
    """Raise ValueError if a variable begins with WELLHEAD_ and is not one of `VARIABLES`."""
    for name in os.environ:
        if name.startswith(PREFIX) and name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"environment variable {name} is not one of wellhead's; the nearest is {near} "
                f"({VARIABLES[near]}). Rename it or unset it."
            )


def wait_politely() -> None:
    """Let idle OpenMP threads sleep instead of spin (OMP_WAIT_POLICY=PASSIVE), unless told otherwise.

    torch's threads otherwise burn the core that the others need as soon as anything else runs: measured on two
    cores beside one busy process, 0.6 instead of 34 tokens/s. OpenMP reads the variable when torch loads it.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def without_multicast() -> None:
    """Keep torch's symmetric memory from NVLink multicast (TORCH_SYMM_MEM_DISABLE_MULTICAST=1), unless told otherwise:
    nothing here uses it, and setting it up fails on hosts whose fabric manager does not allow it.
    """
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")


def default_model() -> str | None:
    """WELLHEAD_MODEL, or None where it is unset or empty: then the embedded checkpoint is meant."""
    check()
    return os.environ.get("WELLHEAD_MODEL") or None


def engine_ops(groups: Sequence[str]) -> tuple[str, ...]:
    """WELLHEAD_OPS as names of `groups`, in their order; () where it is unset or empty. ValueError names the groups."""
    asked = _listed("WELLHEAD_OPS", (*groups, "all"))
    return tuple(groups) if "all" in asked else asked


def without(features: Sequence[str]) -> tuple[str, ...]:
    """WELLHEAD_WITHOUT as names of `features`, in their order; () where it is unset or empty. ValueError names them."""
    return _listed("WELLHEAD_WITHOUT", features)


def _listed(variable: str, known: Sequence[str]) -> tuple[str, ...]:
    check()
    said = os.environ.get(variable, "")
    asked = {part.strip() for part in said.split(",") if part.strip()}
    if unknown := sorted(asked - {*known}):
        raise ValueError(f"{variable}={said}: there is no {unknown[0]!r}, expected some of {', '.join(known)}")
    return tuple(name for name in known if name in asked)


def goes_on() -> bool:
    """True where WELLHEAD_ON_MISMATCH=go-on: an engine then keeps its own kernel for an op that does not fit."""
    check()
    said = os.environ.get("WELLHEAD_ON_MISMATCH") or "stop"
    if said not in ("stop", "go-on"):
        raise ValueError(f"WELLHEAD_ON_MISMATCH={said}: expected stop or go-on")
    return said == "go-on"
