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
