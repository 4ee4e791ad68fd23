from __future__ import annotations

import struct

import pytest
import torch

from wellhead.formats import e4m3, index_key, mxfp4

FORMATS = [
    (index_key.FP8, index_key.write_fp8, index_key.read_fp8),
    (index_key.FP4, index_key.write_fp4, index_key.read_fp4),
]


def some_keys(count: int) -> torch.Tensor:
    keys = torch.randn(count, 128, generator=torch.Generator().manual_seed(7))
    return (keys * 10.0 ** torch.linspace(-4, 3, 128)).bfloat16()


def test_page_bytes() -> None:
    assert (index_key.FP8.record_bytes, index_key.FP8.page_stride(64)) == (132, 8448)
    assert (index_key.FP4.record_bytes, index_key.FP4.page_stride(64)) == (68, 4352)
    view = index_key.FP8.kernel_view(index_key.allocate_pages(index_key.FP8, 3))
    assert view.shape == (3, 64, 1, 132) and view.stride()[:2] == (8448, 132)


@pytest.mark.parametrize("amax, scale", [(448.0, 1.0), (1.0, 1.0 / 448), (3.0, 3.0 / 448), (1e-6, 1e-4 / 448)])
def test_fp8_scale_is_not_rounded(amax: float, scale: float) -> None:
    key = torch.zeros(1, 128)
    key[0, 3] = -amax
    codes, got = index_key.quantize_fp8(key)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(scale, rel=2**-23)  # one fp32 rounding of the quotient
    assert float(codes.float()[0, 3]) == (-448.0 if amax >= 1e-4 else float(e4m3.cast(key[0, 3] / got[0])))


def test_fp8_bytes_of_a_page() -> None:
    page_size, slot = 64, 64 + 5
    keys = some_keys(1)
    cache = index_key.allocate_pages(index_key.FP8, 2)
    index_key.write_fp8(cache, torch.tensor([slot]), keys)
    amax = keys.float().abs().max()
    scale = amax / 448
    page = bytearray(8448)
    page[5 * 128 : 6 * 128] = bytes((keys.float() / scale).to(torch.float8_e4m3fn).view(torch.uint8)[0].tolist())
    page[page_size * 128 + 4 * 5 : page_size * 128 + 4 * 6] = struct.pack("<f", float(scale))
    assert bytes(cache[1].tolist()) == bytes(page)
    assert int(cache[0].sum()) == 0


def test_fp4_bytes_of_a_page() -> None:
    keys = torch.zeros(1, 128)
    keys[0, :5] = torch.tensor([6.0, -0.5, 1.0, 3.0, -6.0])
    keys[0, 32], keys[0, 127] = 12.0, 3.0
    cache = index_key.allocate_pages(index_key.FP4, 1, page_size=2)
    index_key.write_fp4(cache, torch.tensor([1]), keys)
    page = bytearray(2 * 68)
    # low nibble is the even dim: codes 7 9, 2 5, 15 0; dim 127 is a high nibble
    page[64:67] = bytes([0x97, 0x52, 0x0F])
    page[64 + 16], page[64 + 63] = 0x07, 0x70
    page[128 + 4 : 128 + 8] = bytes([127, 128, 1, 126])  # 2^0, 2^1, all zeros, 2^-1
    assert bytes(cache[0].tolist()) == bytes(page)


@pytest.mark.parametrize("layout, write, read", FORMATS)
def test_round_trip(layout, write, read) -> None:  # type: ignore[no-untyped-def]
    keys = some_keys(100)
    slots = torch.randperm(192, generator=torch.Generator().manual_seed(2))[:100].to(torch.int32)
    cache = index_key.allocate_pages(layout, 3)
    write(cache, slots, keys)
    if layout is index_key.FP8:
        codes, scale = index_key.quantize_fp8(keys)
        expected = codes.float() * scale[:, None]
    else:
        expected = mxfp4.round_blocks(keys.float())
    assert torch.equal(read(cache, slots), expected)
    assert torch.equal(read(cache, slots.reshape(4, 25)), expected.reshape(4, 25, 128))


@pytest.mark.parametrize("layout, write, read", FORMATS)
def test_minus_one_empty_and_padded_pages(layout, write, read) -> None:  # type: ignore[no-untyped-def]
    width = layout.page_stride(64)
    pool = torch.full((3, 8640), 255, dtype=torch.uint8)  # NaN scales; pages padded to a multiple of 576
    cache = pool[:, :width]
    keys = some_keys(2)
    write(cache, torch.tensor([-1, 130]), keys)
    got = read(cache, torch.tensor([130, -1]))
    plain = index_key.allocate_pages(layout, 3)
    write(plain, torch.tensor([130]), keys[1:])
    assert torch.equal(got[0], read(plain, torch.tensor([130]))[0])
    assert torch.equal(got[1], torch.zeros(128))
    assert bool((pool[:, width:] == 255).all()) and bool((pool[:2] == 255).all())
    none = torch.zeros(0, dtype=torch.int64)
    write(cache, none, keys[:0])
    assert read(cache, none).shape == (0, 128)


@pytest.mark.parametrize("layout, write, read", FORMATS)
def test_wrong_arguments_are_named(layout, write, read) -> None:  # type: ignore[no-untyped-def]
    cache = index_key.allocate_pages(layout, 1)
    with pytest.raises(ValueError, match=rf"{layout.name} slot 64 is outside the cache: .* 0\.\.63"):
        read(cache, torch.tensor([64]))
    with pytest.raises(ValueError, match=r"keys \[N, 128\] and slots \[N\], got \(1, 64\) and \(1,\)"):
        write(cache, torch.tensor([0]), torch.zeros(1, 64))
    with pytest.raises(ValueError, match=f"bytes is no {layout.name} page"):
        read(cache[:, :-4], torch.tensor([0]))
