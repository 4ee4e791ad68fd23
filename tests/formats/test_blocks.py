"""MXFP4 and block FP8: scales by the rule, values by the element formats, ragged and strided matrices."""

from __future__ import annotations

import math

import pytest
import torch

from wellhead.formats import block_fp8, e2m1, e4m3, mxfp4, ue8m0


@pytest.mark.parametrize(
    "amax, exponent", [(1.0, -8), (3.5, -7), (448.0, 0), (449.0, 1), (1e-5, -22), (0.0, -22), (3e38, 120)]
)
def test_fp8_scale_of_amax(amax: float, exponent: int) -> None:
    assert int(block_fp8.group_scale(torch.tensor(amax))) == exponent + 127
    row = torch.zeros(1, 256)
    row[0, 130] = -amax
    codes, scale = block_fp8.quantize_rows(row)
    assert scale.tolist() == [[105, exponent + 127]]  # a group of zeros has the floor's scale, 2^-22
    assert torch.equal(codes.float(), e4m3.cast(row * 2.0**-exponent).float())
    assert float(codes.float().abs().max()) <= 448


def test_fp8_one_is_256_at_its_scale() -> None:
    codes, scale = block_fp8.quantize_rows(torch.ones(1, 128))
    assert codes.float().unique().tolist() == [256.0] and scale.tolist() == [[119]]


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("shape", [(0, 128), (1, 128), (3, 5, 256)])
def test_fp8_rows_against_scalar_arithmetic(shape: tuple[int, ...], group: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    codes, scale = block_fp8.quantize_rows(x, group)
    assert codes.shape == x.shape and scale.shape == (*shape[:-1], shape[-1] // group)
    for row, codes_row, scale_row in zip(
        x.reshape(-1, group).tolist(), codes.reshape(-1, group), scale.flatten().tolist(), strict=True
    ):
        exponent = math.ceil(math.log2(max(map(abs, row)) / 448))
        assert scale_row == exponent + 127
        assert codes_row.float().tolist() == e4m3.cast(torch.tensor(row) / 2.0**exponent).float().tolist()
    rounded = block_fp8.round_rows(x, group)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded.float(), block_fp8.dequantize_rows(codes, scale))  # exact in bf16
    assert torch.equal(block_fp8.round_rows(rounded, group), rounded)


def test_fp8_rows_take_strided_input_and_whole_groups_only() -> None:
    x = torch.randn(128, 6, generator=torch.Generator().manual_seed(2))
    codes, scale = block_fp8.quantize_rows(x.T)
    expected, expected_scale = block_fp8.quantize_rows(x.T.contiguous())
    assert torch.equal(codes.float(), expected.float()) and torch.equal(scale, expected_scale)
    with pytest.raises(ValueError, match="multiple of 128, got 130"):
        block_fp8.quantize_rows(torch.zeros(1, 130))


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 127), (300, 260), (0, 128)])
def test_fp8_weight_blocks(shape: tuple[int, int]) -> None:
    rows, cols = shape
    w = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    w[: rows // 2] *= 100  # blocks of different scale
    codes, scale = block_fp8.quantize_weight(w)
    blocks = (-(-rows // 128), -(-cols // 128))
    assert codes.shape == shape and codes.is_contiguous() and scale.shape == blocks
    for i in range(blocks[0]):
        for j in range(blocks[1]):
            block = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            exponent = math.ceil(math.log2(float(w[block].abs().max()) / 448))
            assert int(scale[i, j]) == exponent + 127
            assert torch.equal(codes[block].float(), e4m3.cast(w[block] / 2.0**exponent).float())
            value = block_fp8.dequantize_weight(codes, scale)[block]
            assert torch.equal(value, codes[block].float() * 2.0**exponent)


def test_fp8_weight_takes_e8m0_and_fp32_scales() -> None:
    codes, scale = block_fp8.quantize_weight(torch.randn(200, 130, generator=torch.Generator().manual_seed(4)))
    expected = block_fp8.dequantize_weight(codes, scale)
    assert torch.equal(block_fp8.dequantize_weight(codes, scale.view(torch.float8_e8m0fnu)), expected)
    assert torch.equal(block_fp8.dequantize_weight(codes, ue8m0.decode(scale)), expected)
    arbitrary = torch.tensor([[0.3, 0.7], [1.1, 1.3]])
    assert block_fp8.dequantize_weight(codes, arbitrary)[150, 129] == codes[150, 129].float() * arbitrary[1, 1]
    with pytest.raises(ValueError, match=r"needs scales \(2, 2\), got \(2, 1\)"):
        block_fp8.dequantize_weight(codes, scale[:, :1])


@pytest.mark.parametrize(
    "amax, exponent", [(6.0, 0), (6.01, 1), (3.0, -1), (1.0, -2), (0.0, -126), (1e-30, -102), (3e38, 126)]
)
def test_mxfp4_scale_of_amax(amax: float, exponent: int) -> None:
    x = torch.zeros(1, 64)
    x[0, 7] = amax
    assert mxfp4.block_scale(x).tolist() == [[exponent + 127, 1]]


@pytest.mark.parametrize("shape", [(0, 32), (1, 32), (3, 2, 96)])
def test_mxfp4_against_scalar_arithmetic(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * 10
    packed, scale = mxfp4.quantize(x)
    assert packed.shape == (*shape[:-1], shape[-1] // 2) and scale.shape == (*shape[:-1], shape[-1] // 32)
    values = mxfp4.dequantize(packed, scale)
    for row, value, byte in zip(x.reshape(-1, 32), values.reshape(-1, 32), scale.flatten().tolist(), strict=True):
        exponent = math.ceil(math.log2(float(row.abs().max()) / 6))
        assert byte == exponent + 127
        assert torch.equal(value, e2m1.decode(e2m1.cast(row / 2.0**exponent)) * 2.0**exponent)
    assert torch.equal(mxfp4.round_blocks(values), values)


def test_mxfp4_every_byte_and_scale_survives() -> None:
    packed = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    scale = torch.full((16, 1), 130, dtype=torch.uint8)
    expected = e2m1.decode(e2m1.unpack(packed)) * 8
    assert torch.equal(mxfp4.dequantize(packed, scale), expected)
    assert torch.equal(mxfp4.dequantize(packed.view(torch.int8), scale.view(torch.float8_e8m0fnu)), expected)


def test_mxfp4_refuses_mismatched_shapes() -> None:
    with pytest.raises(ValueError, match="multiple of 32, got 48"):
        mxfp4.quantize(torch.zeros(2, 48))
    with pytest.raises(ValueError, match=r"holds 64 elements a row, scale \(2, 3\) covers 96"):
        mxfp4.dequantize(torch.zeros(2, 32, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8))
