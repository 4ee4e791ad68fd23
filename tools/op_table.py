#!/usr/bin/env python3
"""Write docs/ops.md: what every op's SPEC says of it.

    python3 tools/op_table.py

Needs torch, no card; nothing is compiled.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src")]

from wellhead.dispatch.spec import ErrorBudget, OpSpec  # noqa: E402
from wellhead.ops import registry  # noqa: E402

PAGE = ROOT / "docs" / "ops.md"
HEADER = """# The ops

Generated from the SPECs by `python3 tools/op_table.py`; a test holds it current. Each op's folder under
`src/wellhead/ops/` has its kernels beside its reference, whose docstrings have the mathematics and where it is from. An
error budget is what a kernel may differ from its reference: |found - expected| <= absolute + relative * |expected|.

An op is *batch invariant* when the bits of a row depend neither on the rows beside it nor on how many there are; of the
others the bits depend on how many there are, never on what they hold. `tests/kernels/interpreted_batch_invariance.py`
proves both, in the interpreter and on a card.
"""


def number(value: float) -> str:
    """Powers of two as such."""
    mantissa, exponent = value.hex().split("p")
    return "0" if value == 0 else f"2^{int(exponent)}" if mantissa in ("0x1.0000000000000",) else f"{value:g}"


def budget(error: ErrorBudget) -> str:
    """One op's numbers, and why."""
    if error.relative == error.absolute == 0:
        return f"no bit: {error.why}"
    return f"{number(error.relative)} relative, {number(error.absolute)} absolute: {error.why}"


def section(spec: OpSpec) -> str:
    """One op."""
    chosen = "; ".join(
        f"`{impl.name}`"
        + (f" needs {', '.join(impl.needs)}" if impl.needs else "")
        + (", has other numerics and is taken only where asked for by name" if impl.reference else "")
        for impl in spec.impls
    )
    lines = [
        f"## {spec.name}",
        "",
        f"{spec.summary[0].upper()}{spec.summary[1:]}.",
        "",
        f"- implementations, in order of preference: {chosen}",
        f"- error budget: {budget(spec.error)}",
        f"- batch invariant: {'yes' if spec.batch_invariant else 'no'}; {spec.batch_reason}",
        f"- {len(spec.cases)} benchmark cases (`wellhead bench {spec.name} --list`)",
        "",
    ]
    return "\n".join(lines)


def page() -> str:
    """The whole document."""
    return "\n".join([HEADER, *(section(spec) for spec in registry.specs())])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
