"""Which part of the model a rank of tensor parallelism holds.

Heads, output groups, vocabulary and expert width (or whole experts) are divided; the latent projections, compressors,
indexer, router, norms and hyper-connections are whole on every rank. Products whose inputs are divided (wo_b, w2 of
routed and shared experts) are partial sums, added over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wellhead.model.config import ModelConfig

Experts = Literal["width", "expert"]
BLOCK = 128  # a block of scales is not cut
MOST_RANKS = 64


@dataclass(frozen=True)
class Split:
    """Rank `rank` of `world`; `experts` "width" gives a rank a share of every expert's width, "expert" whole ones."""

    rank: int = 0
    world: int = 1
    experts: Experts = "width"

    def __post_init__(self) -> None:
        if self.world < 1 or not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world}: expected a rank from 0 to world - 1, world at least 1")
        if self.experts not in ("width", "expert"):
            raise ValueError(f"experts={self.experts!r}, expected 'width' or 'expert'")

    def part(self, size: int) -> slice:
        """This rank's rows of `size`, which `world` divides."""
        share = size // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def expert_rows(self, config: ModelConfig) -> slice:
        """This rank's experts."""
        count = config.n_routed_experts
        return self.part(count) if self.experts == "expert" else slice(0, count)

    def expert_width(self, config: ModelConfig) -> slice:
        """This rank's part of the routed experts' inner width."""
        width = config.moe_intermediate_size
        return self.part(width) if self.experts == "width" else slice(0, width)

    def check(self, config: ModelConfig) -> None:
        """ValueError, naming every size that cannot be divided so, and what can, unless this model can be split."""
        if wrong := self._undivided(config):
            can = ", ".join(str(split.world) for split in splits(config, self.experts)) or "no number"
            said = f"this model cannot be split over {self.world} ranks: {'; '.join(wrong)}"
            raise ValueError(f"{said}; it can over {can}")

    def _undivided(self, config: ModelConfig) -> list[str]:
        sizes = {
            "o_groups": (config.o_groups, 1),
            "vocab_size": (config.vocab_size, 1),
            "the shared expert's width": (config.moe_intermediate_size * config.n_shared_experts, BLOCK),
        }
        if self.experts == "width":
            sizes["moe_intermediate_size"] = (config.moe_intermediate_size, BLOCK)
        else:
            sizes["n_routed_experts"] = (config.n_routed_experts, 1)
        wrong = [
            f"{name} {size} is no multiple of {self.world * unit}"
            for name, (size, unit) in sizes.items()
            if size % (self.world * unit)
        ]
        if self.world > 1 and config.o_lora_rank % BLOCK:
            wrong.append(f"o_lora_rank {config.o_lora_rank} is no multiple of {BLOCK}")
        return wrong


def splits(config: ModelConfig, experts: Experts) -> list[Split]:
    """Rank 0 of every number of ranks that the model can be split over, the fewest first."""
    found = (Split(0, world, experts) for world in range(1, MOST_RANKS + 1))
    return [split for split in found if not split._undivided(config)]
