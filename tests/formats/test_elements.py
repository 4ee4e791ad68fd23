"""E2M1, E4M3 and UE8M0 over every code, with rounding worked out independently."""

from __future__ import annotations

import math

import pytest
import torch

from wellhead.formats import e2m1, e4m3, ue8m0


def e4m3_value(byte: int) -> float:
    """By the definition: sign, 4 exponent bits of bias 7, 3 mantissa bits; 0x7f is NaN."""
    sign, exponent, mantissa = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return math.nan
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def test_e2m1_all_codes() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert same_bits(e2m1.decode(codes), torch.tensor(values + [-v for v in values]))
    assert torch.equal(e2m1.cast(e2m1.decode(codes)), codes)


def test_e2m1_ties_go_to_the_even_code() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert e2m1.decode(e2m1.cast(ties)).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert e2m1.decode(e2m1.cast(-ties)).tolist() == [-0.0, -1.0, -1.0, -2.0, -2.0, -4.0, -4.0]
    below, above = torch.nextafter(ties, ties * 0), torch.nextafter(ties, ties * 2)
    assert e2m1.decode(e2m1.cast(below)).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
    assert e2m1.decode(e2m1.cast(above)).tolist() == [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_e2m1_saturates() -> None:
    assert e2m1.cast(torch.tensor([6.0, 7.0, 1e30, math.inf, -math.inf])).tolist() == [7, 7, 7, 7, 15]


@pytest.mark.parametrize("shape", [(0,), (2,), (3, 0), (3, 14), (2, 3, 64)])
def test_e2m1_pack_is_inverted(shape: tuple[int, ...]) -> None:
    codes = torch.randint(16, shape, dtype=torch.uint8)
    packed = e2m1.pack(codes)
    assert packed.shape == (*shape[:-1], shape[-1] // 2)
    assert torch.equal(e2m1.unpack(packed), codes)
    assert torch.equal(e2m1.unpack(packed.view(torch.int8)), codes)


def test_e2m1_nibble_order_and_strides() -> None:
    assert e2m1.pack(torch.tensor([0x1, 0xF], dtype=torch.uint8)).tolist() == [0xF1]
    every_byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(e2m1.pack(e2m1.unpack(every_byte)), every_byte)
    strided = torch.stack((every_byte, 255 - every_byte), dim=-1).view(torch.int8)[:, 0]
    assert torch.equal(e2m1.unpack(strided), e2m1.unpack(every_byte))
    with pytest.raises(ValueError, match="even last dimension, got 3"):
        e2m1.pack(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"uint8 or int8, got torch\.int64"):
        e2m1.unpack(torch.zeros(2, dtype=torch.int64))


def test_e4m3_all_codes() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    expected = torch.tensor([e4m3_value(byte) for byte in range(256)])
    for held in (codes, codes.view(torch.float8_e4m3fn)):
        torch.testing.assert_close(e4m3.decode(held), expected, rtol=0, atol=0, equal_nan=True)
    numbers = ~expected.isnan()
    assert torch.equal(e4m3.cast(expected).view(torch.uint8)[numbers], codes[numbers])
    with pytest.raises(ValueError, match=r"float8_e4m3fn or uint8, got torch\.float32"):
        e4m3.decode(expected)


def test_e4m3_rounds_ties_to_even_and_saturates() -> None:
    for low in range(126):
        middle = (e4m3_value(low) + e4m3_value(low + 1)) / 2  # exact in fp32
        point = torch.tensor([middle])
        around = torch.cat((torch.nextafter(point, point * 0), point, torch.nextafter(point, point * 2)))
        tie = low if low % 2 == 0 else low + 1
        assert e4m3.cast(around).view(torch.uint8).tolist() == [low, tie, low + 1]
        assert e4m3.cast(-around).view(torch.uint8).tolist() == [low | 128, tie | 128, (low + 1) | 128]
    beyond = torch.tensor([448.0, 449.0, 464.0, 465.0, 1e30, math.inf])
    assert e4m3.cast(beyond).float().tolist() == [448.0] * 6
    assert e4m3.cast(-beyond).float().tolist() == [-448.0] * 6
    assert bool(e4m3.cast(torch.tensor([math.nan])).float().isnan().all())
    assert e4m3.cast(torch.zeros(0, 3)).shape == (0, 3)


def test_ue8m0_all_codes() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for held in (codes, codes.view(torch.float8_e8m0fnu)):
        decoded = ue8m0.decode(held)
        assert [math.log2(value) for value in decoded[:255].tolist()] == [byte - 127 for byte in range(255)]
        assert math.isnan(decoded[255])
    with pytest.raises(ValueError, match=r"uint8 or float8_e8m0fnu, got torch\.int8"):
        ue8m0.decode(codes.view(torch.int8))


def test_ue8m0_exponent_ceil() -> None:
    # normal powers of two keep their byte, the next float up takes the next byte
    normal = torch.arange(1, 255, dtype=torch.uint8)
    powers = ue8m0.decode(normal)
    assert torch.equal(ue8m0.exponent_ceil(powers), normal)
    inf = torch.full_like(powers, math.inf)
    assert torch.equal(ue8m0.exponent_ceil(torch.nextafter(powers, inf))[:-1], normal[1:])
    assert torch.equal(ue8m0.exponent_ceil(torch.nextafter(powers, powers * 0))[1:], normal[1:])
    assert ue8m0.exponent_ceil(torch.tensor([3e38, math.inf])).tolist() == [254, 254]
    strided = torch.stack((powers, powers + 1), dim=-1)[:, 0]
    assert torch.equal(ue8m0.exponent_ceil(strided), normal)
    assert ue8m0.exponent_ceil(torch.zeros(0, 2)).shape == (0, 2)
