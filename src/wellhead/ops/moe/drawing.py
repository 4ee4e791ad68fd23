"""Random inputs of the cases, and how a plan runs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LIMIT = 10.0  # clamp of gate and up
POOL = 96  # MXFP4 experts that a case draws from uniformly


def rows(tokens: int, d: int, experts: int, top_k: int, generator: Any) -> dict[str, torch.Tensor]:
    """Rows and their rounding, ids and weights of each token, and the shared expert's result."""
    import torch

    from wellhead.formats import block_fp8

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device).bfloat16()

    x, weights = normal(tokens, d), uniform(tokens, top_k)
    codes, scale = block_fp8.quantize_rows(x)
    return {
        "x": x, "codes": codes, "scale": scale, "weights": weights / weights.sum(-1, keepdim=True) * 1.5,
        "ids": uniform(tokens, experts).topk(top_k).indices.int(), "shared": normal(tokens, d),
    }  # fmt: skip


def byte(generator: Any, low: int, high: int, *shape: int) -> torch.Tensor:
    """uint8 from low up to high - 1."""
    import torch

    return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator, device=generator.device)


def scale_bytes(generator: Any, width: int, typical: float, *shape: int) -> torch.Tensor:
    """UE8M0 near the scale that keeps the size of products over `width` inputs with codes of that typical size."""
    middle = 127 - round(math.log2(typical * width**0.5))
    return byte(generator, middle - 1, middle + 2, *shape)


def over_lists(
    inputs: Mapping[str, Any], layer: Any, packed: Any, rows: str = "codes", scale: str | None = "scale"
) -> Callable[[], torch.Tensor]:
    """run() of a plan over a case: the token lists are built by routing before, as in a model. rows and scale name the
    inputs that the plan reads its activations from.
    """
    import torch

    from wellhead.ops.routing.api import plan_lists

    ids, weights, shared = inputs["ids"], inputs["weights"], inputs["shared"]
    lists = plan_lists(ids.shape[0], ids.shape[1], layer.experts, layer.config.group, device=ids.device)
    lists.run(ids)
    x, x_scale, out = inputs[rows], None if scale is None else inputs[scale], torch.empty_like(shared)

    def run() -> torch.Tensor:
        layer.run(x, x_scale, ids, weights, lists, packed, shared).add_up(out)
        return out

    return run
