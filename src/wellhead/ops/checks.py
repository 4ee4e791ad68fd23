"""What a plan checks of the tensors it is handed: shape, dtype and layout, read on the host."""

from __future__ import annotations

import torch


def expect(name: str, value: torch.Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    """ValueError, naming what was given and what is expected, unless `value` is contiguous and of that kind."""
    if tuple(value.shape) != shape or value.dtype not in dtypes or not value.is_contiguous():
        wanted = " or ".join(map(str, dtypes))
        raise ValueError(
            f"{name} is {value.dtype} {tuple(value.shape)} with stride {value.stride()}; expected contiguous "
            f"{wanted} {shape}"
        )


def row_stride(name: str, value: torch.Tensor, width: int, *dtypes: torch.dtype) -> int:
    """Elements from one row of `value` [rows, width] to the next: a slice of wider rows is welcome.

    ValueError unless rows are dense, start a multiple of 16 elements apart and 16 bytes aligned.
    """
    if value.dim() != 2 or value.shape[1] != width or value.dtype not in dtypes or value.stride(1) != 1:
        wanted = " or ".join(map(str, dtypes))
        raise ValueError(
            f"{name} is {value.dtype} {tuple(value.shape)} with stride {value.stride()}; expected {wanted} "
            f"[rows, {width}] with dense rows"
        )
    stride = value.stride(0) if value.shape[0] > 1 else width
    if stride < width or stride % 16 or value.data_ptr() % 16:
        raise ValueError(
            f"{name}: rows {stride} elements apart from address {value.data_ptr() % 16} modulo 16; expected at least "
            f"{width}, a multiple of 16, and 0"
        )
    return stride


def expect_rows(name: str, value: torch.Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    """As `expect`, for rows that may lie at any stride as long as the elements of each are neighbours."""
    if tuple(value.shape) != shape or value.dtype not in dtypes or (value.numel() and value.stride(-1) != 1):
        raise ValueError(
            f"{name} is {value.dtype} {tuple(value.shape)} with stride {value.stride()}; expected "
            f"{' or '.join(map(str, dtypes))} {shape}, last stride 1"
        )


def byte_pages(name: str, cache: torch.Tensor, width: int, what: str) -> torch.Tensor:
    """A paged cache's bytes, u8 [pages, stride]; pages may be padded.

    ValueError unless its elements are bytes and its pages hold `width` of them at least (`what`), dense, a multiple of
    16 bytes apart and 16 bytes aligned.
    """
    kind = cache.dim() == 2 and cache.dtype in (torch.uint8, torch.float8_e4m3fn, torch.int8)
    if not kind or cache.stride(1) != 1 or cache.shape[1] < width:
        raise ValueError(
            f"{name} is {cache.dtype} {tuple(cache.shape)} with stride {cache.stride()}; expected pages of bytes "
            f"[pages, {width}] ({what})"
        )
    if cache.stride(0) % 16 or cache.data_ptr() % 16:
        raise ValueError(
            f"{name}: pages are {cache.stride(0)} bytes apart from address {cache.data_ptr() % 16} modulo 16; expected "
            "a multiple of 16, and 0"
        )
    return cache.view(torch.uint8)
