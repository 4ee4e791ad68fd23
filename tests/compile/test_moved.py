"""Moving code to sm_90a: what is lowered keeps its value, what has no counterpart is refused with its line."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from compile import probes
from wellhead.dispatch.crosscompile import Compiled, compile_for, resources
from wellhead.testing import moved as moving
from wellhead.testing.compile_column import builds

F32 = np.float32


def evaluate(code: str, registers: dict[str, Any]) -> None:
    """Run the few PTX instructions that a lowering may consist of; fp32 as numpy has it, fma through fp64."""
    assert code.strip().startswith("{") and code.strip().endswith("}")
    for step in re.findall(r"[^;]+;", code.strip()[1:-1]):
        words = step.strip().rstrip(";")
        if words.startswith(".reg"):
            continue
        guard, words = re.match(r"(@!?%\w+\s+)?(.*)", words).groups()  # type: ignore[union-attr]
        if guard and registers[guard.strip().lstrip("@!")] == ("!" in guard):
            continue
        name, rest = words.split(None, 1)
        operands = [o.strip() for o in re.findall(r"\{[^}]*\}|[^,{\s][^,{]*", rest)]
        target, *sources = operands
        if name == "mov.b64" and target.startswith("{"):
            low, high = (r.strip() for r in target.strip("{}").split(","))
            value = registers[sources[0]] if sources[0].startswith("%") else np.array([int(sources[0], 16)], np.uint64)
            registers[low], registers[high] = np.array(value).view(F32)
        elif name == "mov.b64":
            registers[target] = np.array([registers[r.strip()] for r in sources[0].strip("{}").split(",")], F32)
        elif name == "cvt.f32.bf16":
            registers[target] = np.array([int(registers[sources[0]]) << 16], np.uint32).view(F32)[0]
        elif name == "cvt.f32.f16":
            registers[target] = F32(np.array([registers[sources[0]]], np.uint16).view(np.float16)[0])
        else:
            operation, kind = name.split(".")[0], name.split(".")[-1]
            assert kind == "f32"
            values = [np.float64(registers[s]) for s in sources]
            how = {
                "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
                "fma": lambda a, b, c: a * b + c, "max": max, "min": min,
            }  # fmt: skip
            registers[target] = F32(how[operation](*values))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("add.rn.f32x2 \t%rd9, %rd1, %rd2;", [1.5 + 0.25, -2.0 + 8.0]),
        ("add.f32x2 %rd9, %rd1, %rd2;", [1.75, 6.0]),
        ("sub.rn.ftz.f32x2 %rd9, %rd1, %rd2;", [1.25, -10.0]),
        ("mul.rz.f32x2 %rd9, %rd1, %rd2;", [0.375, -16.0]),
        ("fma.rn.f32x2 %rd9, %rd1, %rd2, %rd3;", [10.375, 4.0]),
        ("fma.rn.f32x2 %rd1, %rd1, %rd2, %rd1;", [1.875, -18.0]),
        ("@%p1 add.f32x2 %rd9, %rd1, %rd2;", [1.75, 6.0]),
        ("@!%p1 add.f32x2 %rd9, %rd1, %rd2;", [7.0, 7.0]),
        ("mul.f32x2 %rd9, %rd1, 0x400000003f800000;", [1.5, -4.0]),
    ],
)
def test_packed_arithmetic_becomes_two_halves(line: str, wanted: list[float]) -> None:
    pairs = {"%rd1": (1.5, -2), "%rd2": (0.25, 8), "%rd3": (10, 20), "%rd9": (7, 7)}
    registers: dict[str, Any] = {name: np.array(pair, F32) for name, pair in pairs.items()} | {"%p1": True}
    lowered = moving.lower("\t" + line, 1)
    assert lowered is not None and "f32x2" not in lowered
    modifiers = line.split()[1 if line.startswith("@") else 0].removesuffix("x2")
    assert lowered.count(f"{modifiers} moved_d") == 2  # rounding and ftz are kept
    evaluate(lowered, registers)
    assert registers["%rd1" if " %rd1, %rd1" in line else "%rd9"].tolist() == wanted


def test_mixed_width_and_three_operands() -> None:
    registers: dict[str, Any] = {"%rs1": 0x3FC0, "%rs2": 0xC000, "%rs3": 0x3E00, "%r1": F32(0.125), "%r2": F32(-3)}
    for line, wanted in (
        ("fma.rn.f32.bf16 %r9, %rs1, %rs2, %r1;", 1.5 * -2 + 0.125),
        ("add.rn.f32.bf16 %r9, %rs1, %r1;", 1.625),
        ("sub.f32.f16 %r9, %rs3, %r1;", 1.5 - 0.125),
        ("max.f32 %r9, %r1, %r2, %r1;", 0.125),
        ("min.ftz.f32 %r9, %r1, %r2, %r1;", -3.0),
    ):
        lowered = moving.lower(line, 1)
        assert lowered is not None
        evaluate(lowered, registers)
        assert registers["%r9"] == F32(wanted), line


@pytest.mark.parametrize(
    "line",
    ["fma.rn.f32 %r1, %r2, %r3, %r4;", "max.f32 %r1, %r2, %r3;", "mov.b64 %rd1, {%r1, %r2};", "// add.f32x2", "ret;",
     "fma.rn.bf16x2 %r1, %r2, %r3, %r4;", "cvt.rn.bf16x2.f32 %r1, %r2, %r3;", "add.rn.bf16 %rs1, %rs2, %rs3;"],
)  # fmt: skip
def test_what_sm_90_has_is_left_alone(line: str) -> None:
    assert moving.lower(line.split("//")[0], 1) is None


HEAD = ".version 9.1\n.target sm_120a\n.address_size 64\n"


def test_the_target_and_the_version_follow_the_assembler() -> None:
    text, lowered = moving.move_ptx(HEAD + "add.f32x2 %rd1, %rd2, %rd3;\n", (8, 7))
    assert text.startswith(".version 8.7\n.target sm_90a\n") and lowered == 1
    assert moving.move_ptx(HEAD, (9, 4)) == (HEAD.replace("120a", "90a"), 0)


@pytest.mark.parametrize(
    ("ptx", "words"),
    [
        (HEAD + "mma.sync.aligned.m16n8k32.kind::mxf8f6f4.block_scale.f32 {};\n", "line 4 is a block-scaled"),
        (HEAD + "\nadd.f32x2 {%r1, %r2}, %rd1, %rd2;\n", "line 5 has a form that is not known"),
        (HEAD + "fma.rn.f32x2 %rd1, %rd2, %rd3;\n", "line 4 has 2 sources"),
        (HEAD.replace("120a", "100a"), "no single `.target sm_120a`"),
    ],
)
def test_refusals_name_the_line(ptx: str, words: str) -> None:
    with pytest.raises(moving.CannotMove, match=words):
        moving.move_ptx(ptx, (9, 4))


def card_of(cubin: bytes) -> int:
    """The lowest of the flags in an ELF header: 90 where the code is for sm_90 or sm_90a."""
    assert cubin[:4] == b"\x7fELF"
    return cubin[48]


def moved(compiled: Compiled, ptx: str | None = None) -> bytes:
    metadata = {"name": compiled.entry, "shared": compiled.shared_bytes}
    return moving.moved_cubin(compiled.arch, ptx or compiled.ptx, metadata)


def test_what_ptxas_refuses_is_refused_with_its_line() -> None:
    assert card_of(compile_for(probes.build_scale(), "sm90").cubin) == 90
    compiled = compile_for(probes.build_polynomial(), "sm120")
    foreign = compiled.ptx.replace("\tret;", "\ttcgen05.fence::before_thread_sync;\n\tret;")
    with pytest.raises(moving.CannotMove, match=r"polynomial: line \d+: .*tcgen05.fence::before_thread_sync;"):
        moved(compiled, foreign)
    for arch, most in (("sm120", 101376), ("sm80", 166912)):
        with pytest.raises(moving.CannotMove, match=f"{most + 1} B of shared memory; {arch} has {most}"):
            moved(dataclasses.replace(compiled, arch=arch, shared_bytes=most + 1))


def test_moved_code_is_a_cubin_for_hopper() -> None:
    for arch in moving.ARCHS:
        compiled = compile_for(probes.build_scale("i32:16"), arch)
        cubin = moved(compiled)
        assert resources(cubin)[0] > 0 and card_of(cubin) == 90 != card_of(compiled.cubin)
        assert f".target sm_{compiled.arch[2:]}" in compiled.ptx


def test_every_shipped_build_moves_unless_it_is_block_scaled() -> None:
    stay, went = [], 0
    for op, build in builds("sm120"):
        compiled = compile_for(build, "sm120")
        try:
            moved(compiled)
            went += 1
        except moving.CannotMove as reason:
            stay.append(f"{op}/{build.name}: {reason}")
            assert any("block_scale" in line for line in compiled.mma), stay[-1]
    assert went > 20, "the scan saw too few builds"


@pytest.mark.parametrize("arch", moving.ARCHS)
def test_the_compiler_s_own_stages_give_moved_cubins(arch: str) -> None:
    from triton import knobs

    native = compile_for(probes.build_scale(), arch).cubin
    with knobs.cache.scope(), knobs.runtime.scope():
        moving.install_stages(arch)
        found = compile_for(probes.build_scale(), arch)
        assert f".target sm_{arch[2:]}" in found.ptx  # the stages before the last are those of that architecture
        assert card_of(found.cubin) == 90 != card_of(native)
        assert card_of(compile_for(probes.build_scale(), "sm121").cubin) != 90
        if arch == "sm120":
            with pytest.raises(moving.CannotMove, match="block-scaled"):
                compile_for(probes.build_block_scaled(), arch)
    assert compile_for(probes.build_scale(), arch).cubin == native


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_nothing_is_adopted_without_a_hopper() -> None:
    with pytest.raises(ValueError, match="this process has no CUDA card"):
        moving.adopt("sm120")
    with pytest.raises(ValueError, match="code of 'sm89' cannot be moved to a Hopper, expected sm120 or sm80"):
        moving.adopt("sm89")
