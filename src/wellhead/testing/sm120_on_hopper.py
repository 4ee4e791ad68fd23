"""SM120's own code on a Hopper: compile a build for sm_120, move its PTX to sm_90a, assemble, launch.

What a kernel does on SM120 is decided by Triton's lowering for sm_120: layouts, pipelining, `mma.sync`, 99 KB of shared
memory. All of it but the last step, ptxas, is kept. Three things that sm_90 lacks are lowered, modifiers kept and no
result changed: packed fp32 arithmetic (`fma.rn.f32x2`) to both halves, arithmetic of mixed width (`fma.rn.f32.bf16`) to
a widening and the fp32 operation, `max` and `min` of three to two of two. Block-scaled `mma` has no counterpart and is
refused, as is whatever else ptxas does not accept for sm_90a, with the line.

`move` needs no GPU and gives a cubin to carry; `Launcher` loads it with the CUDA driver on an sm_90 card. `adopt`, on a
machine with such a card and Triton, makes a whole process run SM120's code, through Triton's own launcher.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wellhead.dispatch.capability import detect, features_of, simulated
from wellhead.dispatch.crosscompile import ALIGNMENT, TARGETS, Compiled, assemble, compile_for
from wellhead.dispatch.spec import KernelBuild
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


@dataclass(frozen=True)
class Moved:
    """An SM120 kernel assembled for sm_90a, with what a launch needs to know."""

    entry: str
    cubin: bytes
    num_warps: int
    shared_bytes: int
    arguments: Mapping[str, str]  # the kernel's arguments that are passed, in order -> Triton type, as in the build
    extra_pointers: int  # trailing scratch pointers of Triton's calling convention, passed as null
    lowered: int  # instructions that became several


def move(build: KernelBuild) -> Moved:
    """Compile `build` for sm_120 and assemble it for sm_90a. CannotMove says which line stands in the way."""
    return move_compiled(build, compile_for(build, "sm120"))


def move_compiled(build: KernelBuild, compiled: Compiled) -> Moved:
    """The same for a build that was compiled already."""
    if compiled.shared_bytes > SHARED_LIMIT:
        raise CannotMove(f"{build.name}: {compiled.shared_bytes} B of shared memory; SM120 has {SHARED_LIMIT}")
    if compiled.scratch_bytes:
        raise CannotMove(
            f"{build.name}: needs {compiled.scratch_bytes} B of global scratch a block; the launcher gives none"
        )
    ptx, lowered = move_ptx(compiled.ptx, newest_ptx())
    try:
        cubin = assemble(ptx, HOPPER)[0]
    except subprocess.CalledProcessError as refused:
        raise CannotMove(f"{build.name}: {explain(refused.stderr, ptx)}") from refused
    names = build.kernel.arg_names
    arguments = {name: build.signature[name] for name in names if build.signature[name] != "constexpr"}
    extra = ptx.count(".param .") - len(arguments)
    if extra not in (0, 1, 2):
        raise CannotMove(f"{build.name}: {len(arguments)} arguments in the build, {len(arguments) + extra} in the PTX")
    return Moved(compiled.entry, cubin, compiled.num_warps, compiled.shared_bytes, arguments, extra, lowered)


def newest_ptx() -> tuple[int, int]:
    """The newest PTX version that the ptxas for Hopper reads; the wheel's two programs are of different releases."""
    from triton.backends.nvidia.compiler import get_ptxas, ptx_get_version

    return divmod(ptx_get_version(get_ptxas(HOPPER).version), 10)


def move_ptx(ptx: str, newest: tuple[int, int]) -> tuple[str, int]:
    """(PTX for sm_90a, instructions lowered). CannotMove names the first line that has no counterpart."""
    if len(_TARGET.findall(ptx)) != 1:
        raise CannotMove("the PTX has no single `.target sm_120a` line")
    lines, lowered = [], 0
    for number, line in enumerate(ptx.splitlines(), 1):
        code = line.split("//")[0]
        if _BLOCK_SCALED.search(code):
            raise CannotMove(f"line {number} is a block-scaled matrix instruction: {code.strip()[:120]}")
        scalar = lower(code, number)
        lowered += scalar is not None
        lines.append(line if scalar is None else scalar)
    text = _TARGET.sub(".target sm_90a", "\n".join(lines) + "\n")
    version = _VERSION.search(text)
    if version is not None and (int(version[1]), int(version[2])) > newest:
        text = _VERSION.sub(f".version {newest[0]}.{newest[1]}", text)
    return text, lowered


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


def packed_argument(name: str, kind: str, value: Any) -> Any:
    """A ctypes value for one argument; ValueError where it breaks what the kernel was compiled for."""
    plain, _, suffix = kind.partition(":")
    if plain.startswith("*"):
        address = 0 if value is None else value.data_ptr()
        if suffix != "1" and address % ALIGNMENT:
            raise ValueError(f"{name} is at {address:#x}; the kernel was compiled for {ALIGNMENT}-byte alignment")
        return ctypes.c_uint64(address)
    if suffix == str(ALIGNMENT) and value % ALIGNMENT:
        raise ValueError(f"{name} is {value}; the kernel was compiled for a multiple of {ALIGNMENT}")
    kinds = {
        "i32": ctypes.c_int32,
        "u32": ctypes.c_uint32,
        "i64": ctypes.c_int64,
        "u64": ctypes.c_uint64,
        "fp32": ctypes.c_float,
    }
    if plain not in kinds:
        raise ValueError(f"{name} has type {kind!r}; the launcher passes pointers, {', '.join(kinds)}")
    return kinds[plain](value)


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
    text = move_ptx(ptx, newest_ptx())[0]
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


class Launcher:
    """A moved kernel, loaded on the current CUDA device: `launcher((x, y, z), name=value, ...)`.

    Launches on torch's current stream, so it can be captured in a CUDA graph; nothing is allocated or synchronised.
    """

    _MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

    def __init__(self, moved: Moved) -> None:
        import torch

        card = detect()
        if card is None or card.arch != "sm90":
            raise ValueError(f"the cubin is for sm_90a; this process has {card or 'no CUDA card'}")
        torch.cuda.current_stream().synchronize()  # makes torch's context current in this thread
        self.moved = moved
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self._module), moved.cubin)
        self._call("cuModuleGetFunction", ctypes.byref(self._function), self._module, moved.entry.encode())
        limit = ctypes.c_int(moved.shared_bytes)
        self._call("cuFuncSetAttribute", self._function, ctypes.c_int(self._MAX_DYNAMIC_SHARED), limit)

    def __call__(self, grid: tuple[int, ...], **values: Any) -> None:
        import torch

        if set(values) != set(self.moved.arguments):
            raise ValueError(f"{self.moved.entry} takes {list(self.moved.arguments)}; received {list(values)}")
        arguments = [packed_argument(name, kind, values[name]) for name, kind in self.moved.arguments.items()]
        arguments += [ctypes.c_uint64(0)] * self.moved.extra_pointers
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        blocks = [ctypes.c_uint(size) for size in (*grid, 1, 1)[:3]]
        threads = [ctypes.c_uint(32 * self.moved.num_warps), ctypes.c_uint(1), ctypes.c_uint(1)]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        shared = ctypes.c_uint(self.moved.shared_bytes)
        self._call("cuLaunchKernel", self._function, *blocks, *threads, shared, stream, pointers, None)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(status, ctypes.byref(text))
            raise RuntimeError(f"{name} of {self.moved.entry} failed: {(text.value or b'?').decode()} ({status})")
