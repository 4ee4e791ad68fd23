"""Rotation against the reference and its inverse. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from wellhead.ops.rope import api, kernels, reference
from wellhead.ops.rope.spec import SPEC, make

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAST = (1 << 20) - 1
POSITIONS = (0, 1, 255, 65535, 105615, 105616, 1_000_000, LAST)
FREQS = {
    "plain": reference.frequencies(64, 10000.0, None),
    "yarn": reference.frequencies(64, 160000.0, reference.Yarn(16, 65536, 32, 1)),
}


def drawn(tokens: int, heads: int, dim: int) -> torch.Tensor:
    x = make(tokens, heads, dim, torch.Generator().manual_seed(tokens + heads), DEVICE)["x"]
    assert isinstance(x, torch.Tensor)
    return x


def found(
    x: torch.Tensor, positions: torch.Tensor, freqs: torch.Tensor, inverse: bool, in_place: bool = False
) -> torch.Tensor:
    out = x.clone() if in_place else torch.full_like(x, torch.nan)
    given = out if in_place else x
    api.plan(x.shape[1], x.shape[2], inverse=inverse).run(given, positions.to(DEVICE), freqs.to(DEVICE), out)
    return out.cpu()


def agree(left: torch.Tensor, right: torch.Tensor) -> bool:
    bound = SPEC.error.absolute + SPEC.error.relative * right.float().abs()
    return bool(((left.float() - right.float()).abs() <= bound).all())


@triton.jit
def cos_sin_kernel(angle, cos, sin):
    at = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    c, s = kernels.cos_sin(tl.load(angle + at))
    tl.store(cos + at, c)
    tl.store(sin + at, s)


def test_cosine_and_sine_of_angles_up_to_a_million() -> None:
    """Against fp64 of the same fp32 angles: every position near the end with frequency 1, and random ones."""
    integers = torch.cat((torch.arange(4096), torch.arange(LAST - 60 * 1024 + 1, LAST + 1)))
    random = torch.rand(64 * 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.0**20
    quarters = torch.arange(64 * 1024) * 10 * (torch.pi / 2)  # the nearest fp32 to multiples of pi / 2: hardest
    small = torch.rand(4096, generator=torch.Generator().manual_seed(1)) * 4
    angle = torch.cat((integers.float(), random.float(), quarters.float(), small)).clamp_max(LAST).to(DEVICE)
    cos, sin = torch.full_like(angle, torch.nan), torch.full_like(angle, torch.nan)
    cos_sin_kernel[(angle.numel() // 1024,)](angle, cos, sin)
    exact = angle.cpu().double()
    assert float((cos.cpu().double() - exact.cos()).abs().max()) < 2.0**-23
    assert float((sin.cpu().double() - exact.sin()).abs().max()) < 2.0**-23


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("freqs", FREQS)
@pytest.mark.parametrize(("heads", "dim"), [(1, 512), (2, 128), (5, 512), (3, 64)])
def test_agrees_with_the_reference(heads: int, dim: int, freqs: str, inverse: bool) -> None:
    positions = torch.tensor(POSITIONS)
    x = drawn(len(POSITIONS), heads, dim)
    expected = reference.apply(x.cpu(), positions, FREQS[freqs], inverse=inverse)
    for in_place in (False, True):
        result = found(x, positions, FREQS[freqs], inverse, in_place)
        assert agree(result, expected)
        assert torch.equal(result[..., : dim - 64], x.cpu()[..., : dim - 64])
        assert torch.equal(result[0], x.cpu()[0])  # position 0


def test_there_and_back() -> None:
    positions, x = torch.tensor(POSITIONS), drawn(len(POSITIONS), 4, 512)
    back = found(found(x, positions, FREQS["plain"], False).to(DEVICE), positions, FREQS["plain"], True)
    length = x.cpu()[..., 448:].float().unflatten(-1, (-1, 2)).norm(dim=-1, keepdim=True)
    error = (back - x.cpu())[..., 448:].float().unflatten(-1, (-1, 2)).abs()
    assert bool((error <= 2.0**-7 * length).all())


def test_no_tokens_and_rows_that_are_nan() -> None:
    x = drawn(6, 4, 512)
    positions = torch.tensor([5, 6, 7, 8, 9, 10])
    assert found(x[:0], positions[:0], FREQS["plain"], True).shape == (0, 4, 512)
    whole = found(x, positions, FREQS["plain"], True)
    x[3:] = torch.nan
    assert torch.equal(found(x, positions, FREQS["plain"], True)[:3], whole[:3])
    buffer = x.clone()
    api.plan(4, inverse=True).run(buffer[:3], positions[:3].to(DEVICE), FREQS["plain"].to(DEVICE), buffer[:3])
    assert torch.equal(buffer[:3].cpu(), whole[:3]) and bool(buffer[3:].isnan().all())


def test_what_is_refused() -> None:
    for heads, dim, reason in ((0, 512, "heads=0: 1 to"), (4, 192, "dim=192: 64, 128"), (4, 32, "dim=32")):
        with pytest.raises(ValueError, match=reason):
            api.plan(heads, dim)
    x, positions, freqs = drawn(2, 4, 512), torch.zeros(2, dtype=torch.int64), torch.zeros(32)
    for arguments, reason in (
        ((x.float(), positions, freqs, x), "x is torch.float32"),
        ((x, positions.int(), freqs, x), "positions is torch.int32"),
        ((x, positions, freqs[:16], x), r"freqs is torch.float32 \(16,\)"),
        ((x, positions, freqs, x[:1]), r"out is torch.bfloat16 \(1, 4, 512\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            api.plan(4).run(*arguments)
