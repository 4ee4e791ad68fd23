from __future__ import annotations

import math
import struct

import pytest
import torch

from wellhead.formats import block_fp8, kv_record

DTYPES = (torch.uint8, torch.int8, torch.float8_e4m3fn)


def records(count: int, seed: int = 0) -> torch.Tensor:
    kv = torch.randn(count, 512, generator=torch.Generator().manual_seed(seed))
    return kv * 10.0 ** torch.linspace(-3, 2, 512)  # groups of very different size


def expected_read(kv: torch.Tensor) -> torch.Tensor:
    rounded = kv.bfloat16()
    return torch.cat((block_fp8.round_rows(rounded[:, :448], 64), rounded[:, 448:]), dim=1)


@pytest.mark.parametrize(
    "page_size, stride", [(1, 1152), (2, 1728), (8, 5184), (64, 37440), (128, 74880), (256, 149760)]
)
def test_page_stride(page_size: int, stride: int) -> None:
    assert kv_record.page_stride(page_size) == stride
    assert kv_record.LAYOUT.page_size(kv_record.allocate_pages(1, page_size)) == page_size


def test_page_size_is_read_off_every_width() -> None:
    for page_size in range(1, 600):
        cache = torch.empty(0, kv_record.page_stride(page_size), dtype=torch.uint8)
        assert kv_record.LAYOUT.page_size(cache) == page_size


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_of_a_page(dtype: torch.dtype) -> None:
    """The page byte by byte, packed here with struct and scalar arithmetic."""
    page_size, slots = 3, [5, 1, 3]
    kv = records(3)
    cache = kv_record.allocate_pages(2, page_size, dtype)
    kv_record.write(cache, torch.tensor(slots), kv)
    expected = bytearray(2 * kv_record.page_stride(page_size))
    for slot, row in zip(slots, kv.bfloat16(), strict=True):
        page = slot // page_size * kv_record.page_stride(page_size)
        data, tail = page + slot % page_size * 576, page + page_size * 576 + slot % page_size * 8
        for group in range(7):
            values = row[64 * group : 64 * group + 64].float()
            exponent = math.ceil(math.log2(max(float(values.abs().max()), 1e-4) / 448))
            codes = (values / 2.0**exponent).to(torch.float8_e4m3fn).view(torch.uint8)
            expected[data + 64 * group : data + 64 * group + 64] = bytes(codes.tolist())
            expected[tail + group] = exponent + 127
        rope = [struct.pack("<f", value)[2:] for value in row[448:].tolist()]  # bf16 is the upper half
        expected[data + 448 : data + 576] = b"".join(rope)
    assert bytes(cache.view(torch.uint8).flatten().tolist()) == bytes(expected)


@pytest.mark.parametrize("page_size", [1, 2, 64])
@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64])
def test_read_returns_the_rounded_record(page_size: int, slot_dtype: torch.dtype) -> None:
    kv = records(130)
    slots = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:130].to(slot_dtype)
    cache = kv_record.allocate_pages(200, page_size)
    kv_record.write(cache, slots, kv)
    assert torch.equal(kv_record.read(cache, slots), expected_read(kv))
    shaped = slots.reshape(2, 5, 13)
    assert torch.equal(kv_record.read(cache, shaped), expected_read(kv).reshape(2, 5, 13, 512))


def test_slot_minus_one_is_skipped_and_reads_zeros_past_nan() -> None:
    cache = kv_record.allocate_pages(2, 4)
    cache.fill_(255)  # NaN in every element and scale
    kv = records(3)
    kv_record.write(cache, torch.tensor([-1, 6, -1]), kv)
    untouched = torch.full_like(cache, 255)
    kv_record.write(untouched, torch.tensor([6]), kv[1:2])
    assert torch.equal(cache, untouched)
    got = kv_record.read(cache, torch.tensor([[-1, 6], [6, -1]]))
    zeros = torch.zeros(512, dtype=torch.bfloat16)
    assert torch.equal(got, torch.stack((zeros, expected_read(kv)[1], expected_read(kv)[1], zeros)).reshape(2, 2, 512))
    assert torch.equal(kv_record.read(cache, torch.tensor([-1])), zeros[None])
    assert bool(kv_record.read(cache, torch.tensor([0])).isnan().all())  # an unwritten slot shows


def test_empty_and_strided_inputs() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    for pages in (0, 2):
        cache = kv_record.allocate_pages(pages, 2)
        kv_record.write(cache, empty, torch.zeros(0, 512))
        assert kv_record.read(cache, empty).shape == (0, 512)
        assert torch.equal(kv_record.read(cache, torch.tensor([-1])), torch.zeros(1, 512).bfloat16())
    wide = records(4).repeat(1, 2)
    pool = torch.zeros(6, 2000, dtype=torch.uint8)
    cache = pool[::2, :1728]  # every other page of wider rows
    slots = torch.tensor([0, 9, 5, 9, 2, 9, 3, 9])[::2]
    kv_record.write(cache, slots, wide[:, 512:])
    assert torch.equal(kv_record.read(cache, slots), expected_read(wide[:, :512]))
    assert int(pool[1::2].sum()) == 0 and int(pool[:, 1728:].sum()) == 0


def test_rounds_to_bf16_before_quantising() -> None:
    # fp32 just above 449 * 2^-k rounds down in bf16 to 448 * 2^-k, which needs half the scale
    kv = torch.zeros(1, 512)
    kv[0, 0] = 448.5
    cache = kv_record.allocate_pages(1, 2)
    kv_record.write(cache, torch.tensor([0]), kv)
    assert int(cache[0, 2 * 576]) == 127 and float(kv_record.read(cache, torch.tensor([0]))[0, 0]) == 448.0


@pytest.mark.parametrize("amax, byte", [(1.0, 119), (3.5, 120), (448.0, 127), (450.0, 128), (1e-5, 105)])
def test_scale_byte_of_amax(amax: float, byte: int) -> None:
    kv = torch.zeros(1, 512)
    kv[0, 64] = amax
    cache = kv_record.allocate_pages(1, 1)
    kv_record.write(cache, torch.tensor([0]), kv)
    assert cache[0, 576:584].tolist() == [105, byte, 105, 105, 105, 105, 105, 0]


def test_flash_mla_view() -> None:
    cache = kv_record.allocate_pages(3, 64, torch.float8_e4m3fn)
    view = kv_record.flash_mla_view(cache)
    assert view.shape == (3, 64, 1, 584) and view.dtype == torch.float8_e4m3fn
    assert (view.stride(0), view.stride(1), view.stride(3)) == (37440, 584, 1)
    assert view.data_ptr() == cache.data_ptr() and cache.is_contiguous()


@pytest.mark.parametrize("slot", [-2, -(2**31), -(2**63), 8, 2**31, 2**62])
def test_slots_outside_the_cache_are_named(slot: int) -> None:
    cache = kv_record.allocate_pages(4, 2)
    slots = torch.tensor([0, slot])
    with pytest.raises(ValueError, match=rf"slot {slot} is outside the cache: expected -1 \(skip\) or 0\.\.7"):
        kv_record.write(cache, slots, torch.ones(2, 512))
    assert int(cache.sum()) == 0
    with pytest.raises(ValueError, match=rf"slot {slot} is outside"):
        kv_record.read(cache, slots)


def test_wrong_arguments_are_named() -> None:
    cache, slots = kv_record.allocate_pages(2, 2), torch.tensor([0])
    with pytest.raises(ValueError, match=r"kv \[N, 512\] and slots \[N\], got \(1, 576\) and \(1,\)"):
        kv_record.write(cache, slots, torch.zeros(1, 576))
    with pytest.raises(ValueError, match=r"got \(2, 512\) and \(1,\)"):
        kv_record.write(cache, slots, torch.zeros(2, 512))
    with pytest.raises(ValueError, match=r"slots are int32 or int64, got torch\.float32"):
        kv_record.read(cache, torch.zeros(1))
    with pytest.raises(ValueError, match=r"uint8, int8 or float8_e4m3fn, got torch\.bfloat16"):
        kv_record.read(cache.bfloat16(), slots)
    with pytest.raises(ValueError, match=r"1720 bytes is no KV record page: 2 and 3 records take 1728 and 2304"):
        kv_record.read(cache[:, :1720], slots)
    with pytest.raises(ValueError, match="dense last dimension"):
        kv_record.read(torch.zeros(1728, 2, dtype=torch.uint8).T, slots)
    with pytest.raises(ValueError, match="at least 1 record, got page size 0"):
        kv_record.allocate_pages(1, 0)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        kv_record.allocate_pages(-1, 2)
