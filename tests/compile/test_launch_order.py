"""What is read before a dependent launch waits, and that the check of it would notice."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton")

from wellhead.dispatch.crosscompile import compile_for
from wellhead.dispatch.spec import KernelBuild
from wellhead.ops import registry
from wellhead.testing.launch_order import MACHINE_WAIT, WAIT, before_the_wait, complaints, early_arguments

PTX = """
    ld.param.b64 %rd1, [kernel_param_0];
    @%p1 bra $L__BB0_2;
    ld.global.b32 {%r1}, [%rd1];
    griddepcontrol.wait; // dummy
    st.global.b32 [%rd1], {%r1};
$L__BB0_2:
    add.s64 %rd2, %rd1, 4;
    griddepcontrol.wait;
    ret;
"""
MACHINE = """
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0030*/                   ACQBULK ;
        /*0040*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0050*/                   EXIT ;
.L_x_1:
        /*0060*/                   BRA.U !UP0, `(.L_x_2) ;
        /*0070*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0080*/                   LDG.E.64 R6, desc[UR4][R2.64] ;
.L_x_3:
        /*0090*/                   ACQBULK ;
        /*00a0*/                   EXIT ;
"""


def built(op: str, name: str) -> KernelBuild:
    return next(b for impl in registry.spec(op).impls for b in impl.builds() if b.name.startswith(name))


def test_every_way_to_the_wait_is_followed() -> None:
    found = [line.split()[0] for line in before_the_wait(PTX, WAIT)]
    assert found == ["ld.param.b64", "@%p1", "ld.global.b32", "add.s64"]
    found = [line.lstrip("@!P0 ").split()[0] for line in before_the_wait(MACHINE, MACHINE_WAIT)]
    assert found == ["LDC", "BRA", "LDG.E", "BRA.U", "BRA", "LDG.E.64"]


@pytest.mark.parametrize(
    ("op", "name", "early"),
    [
        ("linear", "gemv[1x2x4096,e4m3]", {"w", "w_scale"}),
        ("hyper_connection", "finish_norm[d=4096]", {"base_ptr", "norm_ptr", "scale_ptr"}),  # two ways, a wait in each
        ("moe", "down[1,64x256]", {"group_expert", "group_slots"}),
        ("linear", "few[16x16x128,e4m3]", set()),
    ],
)
def test_what_is_read_before_the_wait(op: str, name: str, early: set[str]) -> None:
    build = built(op, name)
    compiled = compile_for(build, "sm120")
    assert WAIT in compiled.ptx
    assert early_arguments(build, compiled.ptx) == early
    assert complaints(compiled) == []
    without = compile_for(build, "sm89")
    assert WAIT not in without.ptx and complaints(without) == [] and not early_arguments(build, without.ptx)


def test_a_load_or_a_store_that_moved_up_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from wellhead.testing import launch_order

    compiled = dataclasses.replace(compile_for(built("linear", "few[16x16x128,e4m3]"), "sm120"), ptx=PTX)
    for machine, said in (
        (MACHINE, "2 loads come before ACQBULK, 1 before the PTX's wait"),
        (MACHINE.replace("LDG.E.64 R6,", "STG.E.64"), "STG.E.64 desc[UR4][R2.64] comes before ACQBULK"),
        (MACHINE.replace("LDG.E.64 R6, desc[UR4][R2.64]", "@P1 EXIT"), "a program may end before ACQBULK"),
    ):
        monkeypatch.setattr(launch_order, "disassemble", lambda cubin, machine=machine: machine)
        assert complaints(compiled) == [said]
    monkeypatch.setattr(launch_order, "disassemble", lambda cubin: MACHINE.replace("LDG.E.64", "LDC.64"))
    assert complaints(compiled) == []
    monkeypatch.setattr(launch_order, "disassemble", lambda cubin: MACHINE.replace("LDG.E", "LDC"))
    moved = PTX.replace("ld.global.b32 {%r1}, [%rd1];", "st.global.b32 [%rd1], {%r1};")
    (said,) = complaints(dataclasses.replace(compiled, ptx=moved))
    assert said == "the PTX's st.global.b32 [%rd1], {%r1} comes before it waits"
