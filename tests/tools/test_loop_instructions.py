"""`tools/loop_instructions.py`: which loop it finds, what it counts, and what the experts' loop may cost where."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")

from tools.loop_instructions import loaded_bytes, longest_loop, main

TEXT = """
.text.kernel:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
.L_x_2:
        /*0020*/              @!P0 LDG.E.U8 R8, [R2.64] ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R5], [R6.64] ;
        /*0040*/               @P1 BRA `(.L_x_2) ;
        /*0050*/                   LDG.E R9, [R2.64] ;
        /*0060*/              @!P2 BRA `(.L_x_1) ;
        /*0070*/               @P3 BRA `(.L_x_3) ;
        /*0080*/                   STG.E [R2.64], R9 ;
.L_x_3:
        /*0090*/                   EXIT ;
"""


def test_the_longest_jump_back_is_the_loop() -> None:
    loop = longest_loop(TEXT)
    assert loop == ["LDG.E.128", "LDG.E.U8", "LDGSTS.E.BYPASS.128", "BRA", "LDG.E", "BRA"]
    assert loaded_bytes(loop) == 16 + 1 + 16 + 4
    without = longest_loop("\n".join(line for line in TEXT.splitlines() if "@P1" not in line and "@!P2" not in line))
    assert without[0] == "IMAD.MOV.U32" and without[-1] == "EXIT" and len(without) == 8


def test_a_byte_of_experts_costs_what_the_cards_can_issue(capsys: pytest.CaptureFixture[str]) -> None:
    """Two thirds of the loads are weights, so a byte of them costs half more than this says."""
    main(["moe", "gate_up[1,64x256]", "--arch", "sm80", "sm120"])
    lines = [re.split(r"\s+", line) for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [("gate_up[1,64x256]", "sm80"), ("gate_up[1,64x256]", "sm120")]
    ampere, blackwell = (float(line[3]) for line in lines)
    assert ampere < 9.6 / 1.5 and blackwell < 3


def test_an_unknown_build_is_named() -> None:
    with pytest.raises(ValueError, match=r"op 'moe' has no build with 'gate_down'; there are "):
        main(["moe", "gate_down"])
