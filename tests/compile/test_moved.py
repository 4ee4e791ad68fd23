"""Moving SM120's code to sm_90a: what is lowered keeps its value, what has no counterpart is refused with its line."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from compile import probes
from wellhead.dispatch.crosscompile import compile_for, resources
from wellhead.testing import sm120_on_hopper as moving
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


def test_what_ptxas_refuses_is_refused_with_its_line() -> None:
    build = probes.build_polynomial()
    compiled = compile_for(build, "sm120")
    foreign = compiled.ptx.replace("\tret;", "\ttcgen05.fence::before_thread_sync;\n\tret;")
    with pytest.raises(moving.CannotMove, match=r"polynomial: line \d+: .*tcgen05.fence::before_thread_sync;"):
        moving.move_compiled(build, dataclasses.replace(compiled, ptx=foreign))
    with pytest.raises(moving.CannotMove, match="101377 B of shared memory"):
        moving.move_compiled(build, dataclasses.replace(compiled, shared_bytes=101377))
    with pytest.raises(moving.CannotMove, match="global scratch"):
        moving.move_compiled(build, dataclasses.replace(compiled, scratch_bytes=128))
    with pytest.raises(moving.CannotMove, match=r"block_scaled.*|block-scaled"):
        moving.move(probes.build_block_scaled())


def test_a_moved_kernel_is_a_cubin_for_hopper_with_its_arguments() -> None:
    moved = moving.move(probes.build_scale("i32:16"))
    assert moved.cubin[:4] == b"\x7fELF" and resources(moved.cubin)[0] > 0
    assert (moved.entry, moved.num_warps) == ("scale", 4) and moved.shared_bytes > 0
    assert list(moved.arguments.items()) == [
        ("x_ptr", "*fp32"), ("y_ptr", "*fp32"), ("count", "i32"), ("stride", "i32:16")
    ]  # fmt: skip
    assert b"sm_90a" in moved.cubin and b"sm_120" not in moved.cubin


def test_every_shipped_build_moves_unless_it_is_block_scaled() -> None:
    stay, went, lowered = [], 0, 0
    for op, build in builds():
        compiled = compile_for(build, "sm120")
        try:
            lowered += moving.move_compiled(build, compiled).lowered
            went += 1
        except moving.CannotMove as reason:
            stay.append(f"{op}/{build.name}: {reason}")
            assert any("block_scale" in line for line in compiled.mma), stay[-1]
    assert went > 20 and lowered > 100, "the scan saw too few builds"


def test_arguments_are_checked_against_what_was_compiled() -> None:
    aligned = torch.empty(64)
    start = (-aligned.data_ptr() // 4) % 4
    with pytest.raises(ValueError, match="x_ptr is at 0x"):
        moving.packed_argument("x_ptr", "*fp32", aligned[start + 1 :])
    assert moving.packed_argument("x_ptr", "*fp32:1", aligned[start + 1 :]).value == aligned.data_ptr() + 4 * start + 4
    assert moving.packed_argument("x_ptr", "*fp32", None).value in (0, None)
    with pytest.raises(ValueError, match="n is 24"):
        moving.packed_argument("n", "i32:16", 24)
    with pytest.raises(ValueError, match="'tensordesc'"):
        moving.packed_argument("d", "tensordesc", 1)
    assert moving.packed_argument("n", "i64", 2**40).value == 2**40


def test_the_compiler_s_own_stages_give_moved_cubins() -> None:
    from triton import knobs

    native = compile_for(probes.build_scale(), "sm120").cubin
    with knobs.cache.scope(), knobs.runtime.scope():
        moving.install_stages()
        moved = compile_for(probes.build_scale(), "sm120")
        assert ".target sm_120a" in moved.ptx  # the stages before the last are those of sm_120
        assert b"sm_90a" in moved.cubin and b"sm_90a" not in native
        assert b"sm_90a" not in compile_for(probes.build_scale(), "sm121").cubin
        with pytest.raises(moving.CannotMove, match="block-scaled"):
            compile_for(probes.build_block_scaled(), "sm120")
    with pytest.raises(moving.CannotMove, match="k: 101377 B"):
        moving.moved_cubin("", {"name": "k", "shared": 101377})
    assert compile_for(probes.build_scale(), "sm120").cubin == native


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_nothing_is_launched_without_a_hopper() -> None:
    with pytest.raises(ValueError, match="this process has no CUDA card"):
        moving.adopt()
    with pytest.raises(ValueError, match="this process has no CUDA card"):
        moving.Launcher(moving.Moved("kernel", b"", 4, 0, {}, 2, 0))


class Driver:
    """Records cuLaunchKernel and reads the arguments back through the pointers, as the driver does."""

    def __init__(self, kinds: list[Any], status: int = 0) -> None:
        self.kinds, self.status, self.calls = kinds, status, []  # type: ignore[var-annotated]

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        *shape, shared, stream, pointers, extra = rest
        values = [
            ctypes.cast(p, ctypes.POINTER(kind)).contents.value for p, kind in zip(pointers, self.kinds, strict=True)
        ]
        self.calls.append(([v.value for v in shape], shared.value, stream.value, values, extra))
        return self.status

    def cuGetErrorName(self, status: int, text: Any) -> int:
        return 0


def test_the_launcher_hands_the_driver_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"cuda_stream": 77})())
    kinds = {"x_ptr": "*fp32", "count": "i32", "eps": "fp32"}
    launcher = object.__new__(moving.Launcher)
    launcher.moved = moving.Moved("kernel", b"", 8, 4096, kinds, 2, 0)
    launcher._function = ctypes.c_void_p(1)
    seen = Driver([ctypes.c_uint64, ctypes.c_int32, ctypes.c_float, ctypes.c_uint64, ctypes.c_uint64])
    launcher._driver = seen  # type: ignore[assignment]
    x = torch.empty(64)
    launcher((5, 2), eps=0.5, x_ptr=x, count=-3)
    assert seen.calls == [([5, 2, 1, 256, 1, 1], 4096, 77, [x.data_ptr(), -3, 0.5, 0, 0], None)]
    with pytest.raises(ValueError, match=r"takes \['x_ptr', 'count', 'eps'\]; received \['x_ptr'\]"):
        launcher((1,), x_ptr=x)
    seen.status = 700
    with pytest.raises(RuntimeError, match=r"cuLaunchKernel of kernel failed: .*700"):
        launcher((1,), eps=0.5, x_ptr=x, count=1)
