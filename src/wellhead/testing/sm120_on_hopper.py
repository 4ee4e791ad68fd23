"""SM120's own code on a Hopper: compile a build for sm_120, move its PTX to sm_90a, assemble, launch.

What a kernel does on SM120 is decided by Triton's lowering for sm_120: layouts, pipelining, `mma.sync`, 99 KB of shared
memory. All of it but the last step, ptxas, is kept. Three things that sm_90 lacks are lowered, modifiers kept and no
result changed: packed fp32 arithmetic (`fma.rn.f32x2`) to both halves, arithmetic of mixed width (`fma.rn.f32.bf16`) to
a widening and the fp32 operation, `max` and `min` of three to two of two. Block-scaled `mma` has no counterpart and is
refused, as is whatever else ptxas does not accept for sm_90a, with the line.

`moved_cubin` needs no GPU. `adopt`, on a machine with an sm_90 card, makes a whole process run SM120's code, through
Triton's own launcher.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from typing import Any

from wellhead.dispatch.capability import detect, features_of, simulated
from wellhead.dispatch.crosscompile import TARGETS, assemble
from wellhead.ops import card as asked

SHARED_LIMIT = 101376
KEY = "sm120-on-hopper"
HOPPER = 90

_FORM = re.compile(r"^\s*(@!?%\w+\s+)?([a-z]+)((?:\.\w+)*)\s+(%\w+),\s*(.+?);\s*$")
_OPERAND = re.compile(r"%\w+|0[xXfF][0-9a-fA-F]+|-?\d+")
_BLOCK_SCALED = re.compile(r"\bmma\.\S*block_scale")
_PACKED, _MIXED, _THREE = (
    re.compile(r"\b(add|sub|mul|fma)[\w.]*\.f32x2\b"),
    re.compile(r"\b(add|sub|fma)[\w.]*\.f32\.(bf16|f16)\b"),
    re.compile(r"\b(max|min)(\.ftz|\.NaN)*\.f32\s+[^,]+,[^,]+,[^,]+,[^,]+;"),
)
_TARGET = re.compile(r"^\.target\s+sm_12[01]a?\b", re.MULTILINE)
_VERSION = re.compile(r"^\.version\s+(\d+)\.(\d+)", re.MULTILINE)
_REFUSED = re.compile(r"line (\d+); error\s*: (.*)")


class CannotMove(ValueError):
    """The kernel uses something that sm_90a does not have."""


def newest_ptx() -> tuple[int, int]:
    """The newest PTX version that the ptxas for Hopper reads; the wheel's two programs are of different releases."""
    from triton.backends.nvidia.compiler import get_ptxas, ptx_get_version

    return divmod(ptx_get_version(get_ptxas(HOPPER).version), 10)


def move_ptx(ptx: str, newest: tuple[int, int]) -> str:
    """PTX for sm_90a. CannotMove names the first line that has no counterpart."""
    if len(_TARGET.findall(ptx)) != 1:
        raise CannotMove("the PTX has no single `.target sm_120a` line")
    lines = []
    for number, line in enumerate(ptx.splitlines(), 1):
        code = line.split("//")[0]
        if _BLOCK_SCALED.search(code):
            raise CannotMove(f"line {number} is a block-scaled matrix instruction: {code.strip()[:120]}")
        lines.append(lower(code, number) or line)
    text = _TARGET.sub(".target sm_90a", "\n".join(lines) + "\n")
    version = _VERSION.search(text)
    if version is not None and (int(version[1]), int(version[2])) > newest:
        text = _VERSION.sub(f".version {newest[0]}.{newest[1]}", text)
    return text


def lower(code: str, number: int) -> str | None:
    """One instruction that sm_90 lacks, in instructions that it has; None for any other line."""
    rewrite = next((how for form, how in _LOWERED.items() if form.search(code)), None)
    if rewrite is None:
        return None
    found = _FORM.match(code)
    sources = [source.strip() for source in found[5].split(",")] if found else []
    if found is None or not all(_OPERAND.fullmatch(source) for source in sources):
        raise CannotMove(f"line {number} has a form that is not known: {code.strip()[:120]}")
    guard, operation, modifiers, target = found[1] or "", found[2], found[3], found[4]
    if len(sources) not in ({3} if operation in ("fma", "max", "min") else {2}):
        raise CannotMove(f"line {number} has {len(sources)} sources: {code.strip()[:120]}")
    steps = [step.replace("@guard ", guard) for step in rewrite(operation, modifiers, target, sources)]
    return "\t{ " + " ".join(steps) + " }"


def _packed(operation: str, modifiers: str, target: str, sources: list[str]) -> list[str]:
    """`fma.rn.f32x2 d, a, b, c` is `fma.rn.f32` of the low halves and of the high halves."""
    letters, kept = "abc"[: len(sources)], modifiers.removesuffix(".f32x2")
    steps = [f".reg .b32 {', '.join(f'moved_{letter}{half}' for letter in letters + 'd' for half in '01')};"]
    for letter, source in zip(letters, sources, strict=True):
        steps.append(f"mov.b64 {{moved_{letter}0, moved_{letter}1}}, {source};")
    for half in "01":
        read = ", ".join(f"moved_{letter}{half}" for letter in letters)
        steps.append(f"{operation}{kept}.f32 moved_d{half}, {read};")
    return [*steps, f"@guard mov.b64 {target}, {{moved_d0, moved_d1}};"]


def _mixed(operation: str, modifiers: str, target: str, sources: list[str]) -> list[str]:
    """`fma.rn.f32.bf16 d, a, b, c` widens a and b, which is exact; the last source is fp32 already."""
    kept, kind = modifiers.rsplit(".", 1)
    narrow = sources[:-1]
    wide = [f"moved_{letter}" for letter in "ab"[: len(narrow)]]
    steps = [f".reg .b32 {', '.join(wide)};"]
    steps += [f"cvt.f32.{kind} {register}, {source};" for register, source in zip(wide, narrow, strict=True)]
    return [*steps, f"@guard {operation}{kept} {target}, {', '.join([*wide, sources[-1]])};"]


def _three(operation: str, modifiers: str, target: str, sources: list[str]) -> list[str]:
    """`max.f32 d, a, b, c` is the maximum of a and b, and then of that and c."""
    first, second, third = sources
    steps = [".reg .b32 moved_d;", f"{operation}{modifiers} moved_d, {first}, {second};"]
    return [*steps, f"@guard {operation}{modifiers} {target}, moved_d, {third};"]


_LOWERED = {_PACKED: _packed, _MIXED: _mixed, _THREE: _three}


def explain(said: str, ptx: str) -> str:
    """The first three complaints of ptxas, each with the line it is about."""
    lines = ptx.splitlines()
    found = [f"line {n}: {why}: {lines[int(n) - 1].strip()[:120]}" for n, why in _REFUSED.findall(said)]
    return "; ".join(found[:3]) or said.strip()[-300:]


def install_stages() -> None:
    """From now on Triton makes cubins for sm_90a of kernels for sm_120, in a cache folder of their own."""
    from triton import knobs

    def hook(
        backend: Any = None, stages: Any = None, options: Any = None, language: Any = None, capability: Any = None
    ) -> Any:
        if stages is None:
            return KEY, hashlib.sha256(KEY.encode()).hexdigest()
        if capability == TARGETS["sm120"]:
            stages["cubin"] = moved_cubin
        return None

    knobs.runtime.add_stages_inspection_hook = hook
    knobs.cache.dir = f"{knobs.cache.dir}-{KEY}"  # Triton 3.6 leaves the hook out of the cache's key


def moved_cubin(ptx: str, metadata: dict[str, Any]) -> bytes:
    """The last stage of the compiler: PTX for sm_120 in, cubin for sm_90a out."""
    if metadata["shared"] > SHARED_LIMIT:
        raise CannotMove(f"{metadata['name']}: {metadata['shared']} B of shared memory; SM120 has {SHARED_LIMIT}")
    text = move_ptx(ptx, newest_ptx())
    try:
        return assemble(text, HOPPER)[0]
    except subprocess.CalledProcessError as refused:
        raise CannotMove(f"{metadata['name']}: {explain(refused.stderr, text)}") from refused


def adopt() -> None:
    """Make every Triton launch of this process run SM120's code on the Hopper it has: ops need not know.

    Call it before the first launch, in a process of its own; it is not undone. ValueError without an sm_90 card.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    card = detect()
    if card is None or card.arch != "sm90":
        raise ValueError(f"SM120's code is moved to sm_90a; this process has {card or 'no CUDA card'}")
    install_stages()
    sm120 = features_of(simulated("sm120"), triton.__version__)
    setattr(asked, "has", lambda feature: sm120[feature].present)  # noqa: B010
    driver.active.get_current_target = lambda: GPUTarget("cuda", TARGETS["sm120"], 32)
