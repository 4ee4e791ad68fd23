"""In which precision the model runs: as its checkpoint was trained to be served, or exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from wellhead.ops.linear import reference as linear

IndexKeys = Literal["fp8", "fp4"]


@dataclass(frozen=True)
class Numerics:
    """`dtype` of activations between operations, and whether activations and caches are quantised.

    "checkpoint": bf16 activations; E4M3 rows in front of every E4M3 and FP4 weight except wo_a; 584-byte KV
    records; index keys and queries Hadamard-rotated, then FP8 (or FP4). "exact": fp32 everywhere, nothing
    rounded, plain caches; this is the mathematics itself, for comparison with other implementations.
    Compressor state is fp32 in both.
    """

    dtype: torch.dtype
    quantize: bool
    index_keys: IndexKeys = "fp8"
    kv_dtype: torch.dtype = torch.uint8

    @classmethod
    def named(cls, name: str, index_keys: str = "fp8", kv_dtype: str = "uint8") -> Numerics:
        """ "checkpoint" or "exact"; `index_keys` and the dtype of the packed pool only matter to
        "checkpoint".
        """
        if name not in ("checkpoint", "exact"):
            raise ValueError(f"numerics is {name!r}, expected 'checkpoint' or 'exact'")
        if index_keys not in ("fp8", "fp4"):
            raise ValueError(f"index_keys is {index_keys!r}, expected 'fp8' or 'fp4'")
        if kv_dtype not in ("uint8", "float8_e4m3fn"):
            raise ValueError(f"kv_dtype is {kv_dtype!r}, expected 'uint8' or 'float8_e4m3fn' (the same bytes)")
        quantize = name == "checkpoint"
        dtype = torch.bfloat16 if quantize else torch.float32
        return cls(dtype, quantize, index_keys, getattr(torch, kv_dtype))  # type: ignore[arg-type]

    def round_input(self, x: torch.Tensor) -> torch.Tensor:
        """What a product with a quantised weight sees of x."""
        return linear.round_input(x) if self.quantize else x
