"""Compiling for cards that are not there: the evidence is the compiler's, and wrong input is refused."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton")

from compile import probes
from wellhead.dispatch import crosscompile
from wellhead.dispatch.crosscompile import compile_for


def test_evidence_of_a_product_on_every_architecture() -> None:
    for arch in crosscompile.TARGETS:
        found = compile_for(probes.build_product("*bf16"), arch)
        assert found.mma == ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",)
        assert (found.arch, found.entry, found.num_warps) == (arch, "product", 4)
        assert f".target {arch.replace('sm', 'sm_')}" in found.ptx
        assert found.cubin[:4] == b"\x7fELF"
        assert 16 <= found.registers <= 255 and 0 < found.shared_bytes <= 101376
        assert found.spill_bytes == found.stack_bytes == 0


def test_spills_are_seen() -> None:
    found = compile_for(probes.build_product("*bf16", 128, 128, 64, num_warps=1), "sm120")
    assert found.spill_bytes > 1000 and found.stack_bytes > 1000


def test_block_scaled_products_are_told_from_what_they_may_become() -> None:
    native = compile_for(probes.build_block_scaled(), "sm120").mma
    assert len(native) == 1 and "kind::mxf8f6f4.block_scale" in native[0]
    assert not any("block_scale" in line for line in compile_for(probes.build_block_scaled(), "sm90").mma)


def test_alignment_and_divisibility_are_the_build_s_to_say() -> None:
    def wide_loads(build: probes.KernelBuild) -> int:
        return compile_for(build, "sm120").ptx.count("ld.global.v4.b32")

    base = probes.build_scale("i32:16")
    aligned = dataclasses.replace(base, signature={**base.signature, "count": "i32:16"})
    assert wide_loads(aligned) > 0
    assert wide_loads(dataclasses.replace(aligned, signature={**aligned.signature, "stride": "i32"})) == 0
    assert wide_loads(dataclasses.replace(aligned, signature={**aligned.signature, "x_ptr": "*fp32:1"})) == 0


def test_bad_input_is_refused() -> None:
    build = probes.build_scale()
    with pytest.raises(ValueError, match="'sm70' is not one of sm80"):
        compile_for(build, "sm70")
    with pytest.raises(ValueError, match=r"lacks \['stride'\] and names \['strides'\]"):
        kinds = {"strides" if name == "stride" else name: kind for name, kind in build.signature.items()}
        compile_for(dataclasses.replace(build, signature=kinds), "sm120")
    with pytest.raises(ValueError, match="suffix can be :1 or :16"):
        compile_for(probes.build_scale("i32:8"), "sm120")
    with pytest.raises(ValueError, match="without TRITON_INTERPRET"):
        compile_for(dataclasses.replace(build, kernel=probes.scale), "sm120")


def test_claims_may_differ_by_minor_version() -> None:
    claims = {"sm120": "block_scale", "sm121": "block_scale", "sm121@3.7": "bf16"}
    assert crosscompile.claimed(claims, "sm121", "3.7.1") == "bf16"
    assert crosscompile.claimed(claims, "sm121", "3.9.0") == "block_scale"
    assert crosscompile.claimed(claims, "sm90", "3.9.0") is None


def test_instructions_behind_a_predicate_are_read_too() -> None:
    ptx = "\t@%p1 wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {};\n\tmma.sync.x {};\n\t// mma.sync.y\n"
    assert crosscompile.tensor_core_instructions(ptx) == (
        "mma.sync.x",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16",
    )


def test_codes_packed_and_shifted_are_seen() -> None:
    pair = "\tcvt.rn.satfinite.e4m3x2.f32  %rs1, %r7, %r6;\n\tcvt.rn.satfinite.e4m3x2.f32  %rs2, %r9, %r8;\n"
    packed, shifted = "\tmov.b32 \t%r14, {%rs1, %rs2};\n", "\tshr.u16 \t%rs22, %rs1, 8;\n"
    assert crosscompile.torn_conversions(pair + packed) == crosscompile.torn_conversions(pair + shifted) == 0
    assert crosscompile.torn_conversions(pair + shifted + packed) == 1
