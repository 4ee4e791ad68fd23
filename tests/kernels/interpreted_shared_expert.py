"""The middle of the shared expert against the reference. Run by test_interpreter.py, or natively where a card is."""

from __future__ import annotations

import pytest
import torch

from wellhead.formats import block_fp8
from wellhead.ops.moe.reference import swiglu
from wellhead.ops.moe.shared_api import plan_shared

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_codes_are_those_of_the_reference(tokens: int) -> None:
    m, limit = 256, 1.0  # low enough to bite
    gate_up = (torch.randn(tokens, 2 * m, generator=torch.Generator().manual_seed(tokens)) * 2).bfloat16()
    codes = torch.zeros(tokens, m, dtype=torch.float8_e4m3fn, device=DEVICE)
    scale = torch.zeros(tokens, m // 128, dtype=torch.uint8, device=DEVICE)
    plan_shared(m, limit).run(gate_up.to(DEVICE), codes, scale)
    hidden = swiglu(*gate_up.split(m, dim=1), limit).bfloat16()
    wanted = block_fp8.dequantize_rows(*block_fp8.quantize_rows(hidden))
    found = block_fp8.dequantize_rows(codes.cpu(), scale.cpu())
    # exp may differ in the last bit: a code moves by one step at most, and seldom
    assert float((found != wanted).float().mean()) < 0.01 if tokens else True
    assert torch.allclose(found, wanted, rtol=2**-3, atol=2**-9)


def test_unsupported_widths_are_named() -> None:
    with pytest.raises(ValueError, match="m=100: a multiple of 128"):
        plan_shared(100, 10.0)
