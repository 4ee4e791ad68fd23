"""Products with bf16 weights against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

import pytest
import torch

from wellhead.ops.bf16_linear import api, reference
from wellhead.ops.bf16_linear.spec import SPEC, make

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def found(x: torch.Tensor, weight: torch.Tensor, parts: tuple[int, ...], kinds: list[torch.dtype]) -> torch.Tensor:
    """All parts side by side, in fp32; outputs are born with NaN."""
    out = [torch.full((len(x), n), torch.nan, dtype=kind, device=DEVICE) for n, kind in zip(parts, kinds, strict=True)]
    api.plan(parts, x.shape[1]).run(x, weight, *out)
    return torch.cat([part.float() for part in out], dim=1).cpu()


@pytest.mark.parametrize("tokens", [0, 1, 2, 17, 40, 70])
@pytest.mark.parametrize(("parts", "k"), [((200,), 384), ((128, 72), 512), ((128, 256, 16), 2048)])
def test_agrees_with_the_reference(tokens: int, parts: tuple[int, ...], k: int) -> None:
    case = make(tokens, parts, k, torch.Generator().manual_seed(tokens), DEVICE)
    kinds = [torch.float32] * (len(parts) - 1) + [torch.bfloat16]
    result = found(case["x"], case["weight"], parts, kinds)
    expected = reference.product(case["x"].cpu(), case["weight"].cpu())
    expected[:, -parts[-1] :] = expected[:, -parts[-1] :].bfloat16().float()
    step = torch.zeros_like(expected)
    step[:, -parts[-1] :] = 2.0**-7  # a sum beside a bf16 boundary may fall on either side
    bound = SPEC.error.absolute + (SPEC.error.relative + step) * expected.abs()
    assert bool(((result - expected).abs() <= bound).all())


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_row_does_not_depend_on_its_neighbours_nor_on_the_distance_between_rows(tokens: int) -> None:
    case = make(4, (128, 64), 512, torch.Generator().manual_seed(0), DEVICE)
    wide = torch.cat([case["x"], torch.full_like(case["x"], torch.nan)], dim=1)
    kinds = [torch.float32, torch.float32]
    rows = found(wide[:tokens, :512], case["weight"], (128, 64), kinds)
    if tokens == 3:
        assert torch.equal(rows, found(case["x"], case["weight"], (128, 64), kinds)[:3])
    else:
        assert torch.equal(rows, found(case["x"][:1].clone(), case["weight"], (128, 64), kinds))


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="k=200"):
        api.plan(16, 200)
    with pytest.raises(ValueError, match="multiple of 128"):
        api.plan((64, 64), 256)
    case = make(2, (128, 64), 256, torch.Generator().manual_seed(0), DEVICE)
    with pytest.raises(ValueError, match="1 outputs"):
        api.plan((128, 64), 256).run(case["x"], case["weight"], torch.empty(2, 128, device=DEVICE))
