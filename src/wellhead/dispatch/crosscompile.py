"""Compile a kernel for a card that is not there, and read what came out of the compiler.

Needs Triton and no GPU: Triton carries ptxas and cuobjdump in its wheel. Works with every supported Triton; the
one that the process imports is the one that speaks.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wellhead.dispatch.capability import has_unit
from wellhead.dispatch.spec import KernelBuild

TARGETS = {"sm80": 80, "sm86": 86, "sm89": 89, "sm90": 90, "sm120": 120, "sm121": 121}
ALIGNMENT = 16  # bytes for a pointer, elements for an integer: the one divisor that Triton's runtime looks for

_MMA = re.compile(r"^\s*(?:@!?%p\d+\s+)?((?:wgmma\.mma_async|tcgen05\.mma|mma)\.[\w.:]+)", re.MULTILINE)
_E4M3_PAIR = re.compile(r"cvt\.rn\.satfinite\.e4m3x2\.f32\s+(%rs\d+)")
_PACKED = re.compile(r"mov\.b32\s+%r\d+, \{([^}]*)\}")
_HALVED = re.compile(r"(?:shr\.[us]16\s+%rs\d+|cvt\.u32\.u16\s+%r\d+), (%rs\d+)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Compiled:
    """Evidence of one build compiled for one architecture by one Triton."""

    arch: str
    triton: str
    entry: str  # the kernel's name inside the cubin
    num_warps: int
    shared_bytes: int  # dynamic shared memory a launch asks for, per block
    registers: int  # 32-bit registers a thread
    stack_bytes: int  # stack frame of a thread: spills and arrays indexed at run time
    spill_bytes: int  # bytes a thread writes to local memory because registers ran out
    scratch_bytes: int  # global memory that the launcher must hand over per block
    mma: tuple[str, ...]  # the distinct tensor-core instructions in the PTX, sorted
    torn: int  # pairs of E4M3 codes that ptxas may compile wrong: see `torn_conversions`
    ptx: str
    cubin: bytes


def compile_for(build: KernelBuild, arch: str) -> Compiled:
    """Compile `build` for `arch` ("sm120", "sm121", "sm90", "sm89", "sm86", "sm80").

    The variant is the one the runtime would pick under these assumptions: every pointer is 16-byte aligned (as
    torch allocates), no integer argument equals 1 (Triton would make it a constant), and no integer is known to be
    a multiple of 16 unless its type says so ("i32:16"). "*bf16:1" is a pointer that is not aligned. Where the
    architecture has no PDL it is off. Floating-point fusion is on, Triton's default up to 3.9. Raises ValueError for a
    signature that does not fit the kernel, for an unknown architecture, and under Triton's interpreter; errors of the
    compiler propagate.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if arch not in TARGETS:
        raise ValueError(f"architecture {arch!r} is not one of {', '.join(TARGETS)}")
    if build.constants.get("PDL") and not has_unit("pdl", arch):
        build = replace(build, constants={**build.constants, "PDL": False})
    if not isinstance(build.kernel, triton.runtime.JITFunction):
        kind = type(build.kernel).__name__
        raise ValueError(f"build {build.name!r}: its kernel is a {kind}; compile without TRITON_INTERPRET=1")
    signature, divisible = specialise(build.kernel.arg_names, build.signature, build.name)
    constants = {(build.kernel.arg_names.index(name),): value for name, value in build.constants.items()}
    attributes = {(position,): [["tt.divisibility", ALIGNMENT]] for position in divisible}
    target = GPUTarget("cuda", TARGETS[arch], 32)
    with _current(target), contextlib.redirect_stdout(io.StringIO()):  # Triton prints the PTX when ptxas refuses it
        made = triton.compile(
            ASTSource(build.kernel, signature, constants, attributes),
            target=target,
            options={"num_warps": build.num_warps, "num_stages": build.num_stages, "enable_fp_fusion": True},
        )
    ptx, cubin = made.asm["ptx"], made.asm["cubin"]
    registers, stack = resources(cubin)
    return Compiled(
        arch=arch,
        triton=triton.__version__,
        entry=made.metadata.name,
        num_warps=made.metadata.num_warps,
        shared_bytes=made.metadata.shared,
        registers=registers,
        stack_bytes=stack,
        spill_bytes=spills(ptx, TARGETS[arch]) if stack else 0,
        scratch_bytes=made.metadata.global_scratch_size + made.metadata.profile_scratch_size,
        mma=tensor_core_instructions(ptx),
        torn=torn_conversions(ptx),
        ptx=ptx,
        cubin=cubin,
    )


@contextlib.contextmanager
def _current(target: Any) -> Iterator[None]:
    """What kernels ask `triton.language.target_info` of the target is answered for this one, not for the card here."""
    from triton.language import target_info

    def this_one() -> Any:
        return target

    this_one.__triton_builtin__ = True  # type: ignore[attr-defined]  # not a part of a kernel's source
    before, target_info.current_target = target_info.current_target, this_one
    try:
        yield
    finally:
        target_info.current_target = before


def specialise(names: list[str], signature: Mapping[str, str], build: str) -> tuple[dict[str, str], list[int]]:
    """(signature in the kernel's order without suffixes, positions of the arguments divisible by 16)."""
    if set(names) != set(signature):
        missing, unknown = sorted(set(names) - set(signature)), sorted(set(signature) - set(names))
        raise ValueError(f"build {build!r}: signature lacks {missing} and names {unknown} that the kernel has not")
    plain: dict[str, str] = {}
    divisible: list[int] = []
    for position, name in enumerate(names):
        kind, _, suffix = signature[name].partition(":")
        if suffix not in ("", "1", str(ALIGNMENT)):
            raise ValueError(f"build {build!r}: {name} is {signature[name]!r}; the suffix can be :1 or :{ALIGNMENT}")
        plain[name] = kind
        if kind != "constexpr" and (suffix == str(ALIGNMENT) or (not suffix and kind.startswith("*"))):
            divisible.append(position)
    return plain, divisible


def tensor_core_instructions(ptx: str) -> tuple[str, ...]:
    """The distinct matrix instructions of a PTX text, with all their modifiers, sorted."""
    return tuple(sorted(set(_MMA.findall(ptx))))


def torn_conversions(ptx: str) -> int:
    """How many results of an E4M3 conversion are both packed with a second pair and shifted apart.

    ptxas 12.8 (in Triton 3.6) fuses the two conversions of a packed word and reads the shifted byte of the first from
    a register that it has not written yet: right values packed, wrong ones shifted. Seen on an H100 (docs/log.md).
    """
    packed = {name.strip() for word in _PACKED.findall(ptx) for name in word.split(",")}
    return len(set(_E4M3_PAIR.findall(ptx)) & packed & set(_HALVED.findall(ptx)))


def claimed(mma: Mapping[str, str], arch: str, triton: str) -> str | None:
    """What `KernelBuild.mma` claims for this column: the key "sm121@3.7" is looked up before "sm121"."""
    minor = ".".join(triton.split(".")[:2])
    return mma.get(f"{arch}@{minor}", mma.get(arch))


def tool(name: str) -> str:
    """Path of a program of the imported Triton's wheel: "ptxas", "ptxas_blackwell" or "cuobjdump"."""
    from triton import knobs

    found: Any = getattr(knobs.nvidia, name)
    return str(found.path)


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, stack bytes a thread) of a cubin with one kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        said = subprocess.run(
            [tool("cuobjdump"), "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
    found = _USAGE.findall(said)
    if len(found) != 1:
        raise ValueError(f"expected one kernel in the cubin, cuobjdump reports {len(found)}:\n{said}")
    return int(found[0][0]), int(found[0][1])


def disassemble(cubin: bytes) -> str:
    """The machine code, a line an instruction. ValueError where the wheel's nvdisasm does not know the architecture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        program = Path(tool("cuobjdump")).with_name("nvdisasm")
        said = subprocess.run([program, "-c", path], capture_output=True, text=True)
    if said.returncode:
        raise ValueError(f"{said.stderr.strip() or program}; a newer Triton reads it")
    return said.stdout


def assemble(ptx: str, number: int) -> tuple[bytes, str]:
    """(cubin, what ptxas said) with the ptxas and the options that Triton uses for sm_<number>.

    Raises subprocess.CalledProcessError, whose stderr names the lines of `ptx` that ptxas refuses.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    suffix = "a" if number >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        path.write_text(ptx, encoding="utf-8")
        command = [get_ptxas(number).path, "-v", "-lineinfo", *_allocation(), f"--gpu-name=sm_{number}{suffix}"]
        said = subprocess.run([*command, str(path), "-o", str(made)], capture_output=True, text=True, check=True).stderr
        return made.read_bytes(), said


def spills(ptx: str, number: int) -> int:
    """Bytes of spill stores that ptxas reports for the PTX."""
    said = assemble(ptx, number)[1]
    return max((max(int(stores), int(loads)) for stores, loads in _SPILL.findall(said)), default=0)


def _allocation() -> list[str]:
    """The register allocator's level, which Triton sets from 3.7 on."""
    import triton

    return ["--regAllocOptLevel=2"] if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7) else []
