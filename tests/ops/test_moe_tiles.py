"""Which kernels and which tiles the experts take, by tokens and by what the card multiplies with."""

from __future__ import annotations

import pytest

from wellhead.ops import card
from wellhead.ops.moe import prefill_api
from wellhead.ops.moe.api import Mxfp4Experts
from wellhead.ops.moe.configs import Config, choose_config, few_tokens
from wellhead.ops.moe.grouped import Tiles
from wellhead.ops.moe.grouped_configs import choose_prefill

FLASH = {"top_k": 6, "experts": 256}


@pytest.mark.parametrize(
    ("name", "warp_groups", "most"),
    [("w4a8-bf16", True, 256), ("w4a8-bf16", False, 64), ("w4a8", True, 64), ("w4a8", False, 64), ("w4a16", True, 0)],
)
def test_the_planned_number_of_tokens_chooses(
    name: str, warp_groups: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "has", lambda feature: feature == "wgmma" and warp_groups)
    for tokens in (1, 64, 65, 256, 257):
        plan = prefill_api.plan(tokens, 256, 256, 4, 2, 1.0, prefill_api.PRODUCTS[name], device="meta")
        assert isinstance(plan, Mxfp4Experts) == (tokens <= most), tokens


@pytest.mark.parametrize("tokens", [65, 128, 256])
def test_warp_groups_stream_many_tokens_by_wider_steps(tokens: int) -> None:
    assert tokens <= few_tokens(True) and tokens > few_tokens(False)
    assert choose_config(tokens, 6, 256, 4096, 2048, True) == Config(8, 128, 128, 256, 256, 3)
    assert choose_config(tokens, 6, 256, 7168, 384, True) == Config(8, 128, 128, 256, 128, 3)
    assert choose_config(tokens, 6, 96, 4096, 2048, False) == Config(8, 128, 128, 128, 128, 4)


def test_up_to_64_tokens_only_one_alone_asks_for_warp_groups() -> None:
    for tokens in range(1, 65):
        wide, narrow = (choose_config(tokens, 6, 256, 4096, 2048, groups) for groups in (True, False))
        assert (wide == narrow) == (wide.group > 1) and wide.inputs == (512 if wide.group == 1 else narrow.inputs)


@pytest.mark.parametrize(
    ("tokens", "native", "warp_groups", "tiles"),
    [
        (512, False, True, Tiles(32, 128, 128, 64, 4, 4, 4)),
        (1365, False, True, Tiles(32, 128, 128, 64, 4, 4, 4)),
        (1366, False, True, Tiles(64, 128, 128, 64, 4, 4, 4)),
        (2730, False, False, Tiles(64, 128, 128, 64, 4, 4, 4)),
        (2731, False, True, Tiles(128, 128, 128, 64, 4, 4, 3)),
        (2731, False, False, Tiles(128, 128, 128, 64, 8, 8, 4)),
        (1365, True, False, Tiles(32, 256, 128, 64, 8, 4, 4)),
        (4096, True, False, Tiles(64, 256, 128, 64, 8, 4, 4)),
    ],
)
def test_blocks_are_as_large_as_an_expert_is_shared(tokens: int, native: bool, warp_groups: bool, tiles: Tiles) -> None:
    assert choose_prefill(tokens, native=native, warp_groups=warp_groups, **FLASH) == tiles
