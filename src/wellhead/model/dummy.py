"""Random weights in the formats of a checkpoint, made on the device layer by layer, for benchmarks without files.

Matrices have variance 1 / inputs as those of a normalised layer do, so activations stay of order one; codes take every
valid value of a range, so that time and power are those of weights. A tensor that is whole on every rank is the same
on every rank; divided ones differ by rank, and are not the parts of what one rank alone would draw.
"""

from __future__ import annotations

import functools
import math
import zlib

import torch

from wellhead.formats import e2m1, e4m3
from wellhead.model.config import ModelConfig
from wellhead.model.device_layout import DeviceLayout, Part
from wellhead.model.device_weights import ModelWeights, leaves
from wellhead.model.split import Split

CHUNK = 1 << 26  # bytes or elements drawn at a time: what a temporary may cost
E4M3_MAGNITUDES = 0x48  # E4M3 codes 0 .. 3.75: wide enough to look like weights
_SPREAD = ((0.25 + 1 + 4) / 3) ** 0.5  # root mean square of the scales around their middle


def dummy_weights(
    config: ModelConfig, split: Split, device: torch.device | str, *, with_mtp: bool = False, seed: int = 0
) -> ModelWeights:
    """One rank's model, drawn; a tensor depends on `seed`, its path, the device's kind and, if divided, the rank.

    `published.first_layers` makes the configuration of a shorter model. ValueError when it cannot be split so.
    """
    layout = DeviceLayout.of(config, split, device)
    parts: dict[str, Part] = {}
    for path, part in layout.parts(with_mtp):
        for leaf, tensor in leaves(part, path):
            owner = split.rank if is_divided(leaf, split) else "all"
            generator = torch.Generator(layout.device)
            # torch's CPU generator keeps the low 32 bits of a seed
            generator.manual_seed(zlib.crc32(f"{seed} {owner} {leaf}".encode()))
            _Draw(config, split, generator).fill(leaf, tensor)
        parts[path] = part
    return layout.join(parts)


def is_divided(path: str, split: Split) -> bool:
    """Whether ranks hold different parts of the tensor at that path of the tree."""
    if split.world == 1:
        return False
    tail = path.split(".")[-2:]
    return (
        path == "embedding"
        or path.endswith((".vocabulary", ".attention.sink", ".attention.wq_b.weight", ".attention.wq_b.scale"))
        or bool({"wo_a", "wo_b", "experts", "shared_w13", "shared_w2"}.intersection(tail))
    )


class _Draw:
    """The values of one tensor, by where it is in the tree."""

    def __init__(self, config: ModelConfig, split: Split, generator: torch.Generator):
        self._config, self._split, self._generator = config, split, generator

    def fill(self, path: str, tensor: torch.Tensor) -> None:
        name = path.split(".")[-1]
        if tensor.dtype == torch.int32:
            self._experts_of_tokens(tensor)
        elif name in ("s13", "s2") or (name == "scale" and tensor.dtype == torch.uint8):
            self._scales(path, tensor)
        elif tensor.dtype == torch.float8_e4m3fn:
            self._e4m3(tensor)
        elif tensor.dtype == torch.uint8:
            tensor.random_(0, 256, generator=self._generator)
        elif name == "scale":  # of a hyper-connection's mixing weights
            tensor.uniform_(0.1, 1.0, generator=self._generator)
        elif name == "base":
            self._normal(tensor, 0.1)
            self._favour_own_stream(tensor)
        elif name == "bias":
            self._normal(tensor, 0.05)
        elif name in ("sink", "ape"):
            self._normal(tensor, 0.5)
        elif name == "embedding":
            self._normal(tensor, 1.0)
        elif tensor.dim() == 1:  # norms
            self._normal(tensor, 0.1, 1.0)
        else:
            self._normal(tensor, tensor.shape[1] ** -0.5)

    def _normal(self, tensor: torch.Tensor, deviation: float, mean: float = 0.0) -> None:
        tensor.normal_(mean, deviation, generator=self._generator)

    def _e4m3(self, tensor: torch.Tensor) -> None:
        for part in tensor.view(torch.uint8).flatten().split(CHUNK):
            part.random_(0, 2 * E4M3_MAGNITUDES, generator=self._generator)
            part.add_((part >= E4M3_MAGNITUDES).to(torch.uint8), alpha=128 - E4M3_MAGNITUDES)  # the sign bit

    def _scales(self, path: str, tensor: torch.Tensor) -> None:
        """Near the scale that gives a matrix variance 1 / inputs, a factor of two up and down."""
        fp4 = ".experts." in path and self._config.expert_dtype == "fp4"
        inputs = tensor.shape[-1] * (32 if fp4 else 128)
        if self._sums_over_ranks(path):
            inputs *= self._split.world
        middle = middle_exponent("E2M1" if fp4 else "E4M3", inputs)
        if tensor.dtype == torch.uint8:
            tensor.random_(126 + middle, 129 + middle, generator=self._generator)
        else:
            tensor.random_(-1, 2, generator=self._generator)
            tensor.add_(middle).exp2_()

    def _sums_over_ranks(self, path: str) -> bool:
        return ".wo_b." in path or ".shared_w2." in path or (path.endswith(".s2") and self._split.experts == "width")

    def _experts_of_tokens(self, table: torch.Tensor) -> None:
        """Distinct experts of each token, evenly drawn: a start and a stride that does not come round."""
        experts, (tokens, chosen) = self._config.n_routed_experts, table.shape
        drawn = {"generator": self._generator, "device": table.device, "dtype": torch.int32}
        start = torch.randint(0, experts, (tokens, 1), **drawn)  # type: ignore[call-overload]  # keywords by name
        most = max(1, (experts - 1) // max(1, chosen - 1))
        stride = torch.randint(1, most + 1, (tokens, 1), **drawn)  # type: ignore[call-overload]
        table.copy_((start + stride * torch.arange(chosen, device=table.device, dtype=torch.int32)) % experts)

    def _favour_own_stream(self, base: torch.Tensor) -> None:
        """Raise the diagonal of the streams x streams mixing matrix; the head has none."""
        streams = self._config.hc_mult
        if base.shape[0] > streams:
            base[2 * streams :] += 2 * torch.eye(streams, device=base.device).flatten()


@functools.cache
def middle_exponent(name: str, inputs: int) -> int:
    """e so that codes of "E2M1" or "E4M3" times 2^(e-1), 2^e or 2^(e+1) have variance near 1 / inputs."""
    if name == "E2M1":
        values = e2m1.decode(torch.arange(16, dtype=torch.uint8))
    else:
        values = e4m3.decode(torch.arange(E4M3_MAGNITUDES, dtype=torch.uint8))
    typical = float(values.square().mean().sqrt())
    return -round(math.log2(typical * _SPREAD * inputs**0.5))
