"""The host and the card agree on where drafts may lie."""

from __future__ import annotations

import pytest
import torch

from wellhead.model.draft_room import computed, draft_room


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_card_computes_what_the_host_would(most: int) -> None:
    for last in (0, 100, 254, 255, 256, 509, 510, 511, 700):
        newest = torch.arange(0, 530)
        found = computed(newest, torch.full_like(newest, last), 1 + most)
        wanted = [1 + draft_room(place, last, most) if place <= last else 0 for place in newest.tolist()]
        assert found.sum(1).tolist() == wanted
        assert (found.long().diff(dim=1) <= 0).all(), "what is computed is in front"


def test_no_draft_is_a_page_end_nor_behind_a_page_begin() -> None:
    assert [draft_room(place, 9999, 3) for place in (0, 1, 250, 251, 252, 253, 254, 255, 256, 257)] == [
        1, 3, 3, 3, 2, 1, 0, 0, 1, 3
    ]  # fmt: skip
    assert [draft_room(10, last, 3) for last in (9, 10, 11, 12, 13, 14)] == [0, 0, 1, 2, 3, 3]
