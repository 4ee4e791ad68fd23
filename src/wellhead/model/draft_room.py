"""Where drafts may lie behind a request's newest token: for the host, which lays a step out, and for a card, which goes
on before the host knows where the newest token is.

None lies on a page's last token: only a step without drafts ends at a page's end, where a prefix may be kept, and
drafts never need a page that the newest token does not need. On a page's first token that page is not there yet for the
drafting layer to write to, so that there is one draft at most.
"""

from __future__ import annotations

import torch

from wellhead.model.state import PAGE_TOKENS


def draft_room(newest: int, last: int, most: int) -> int:
    """How many drafts, at most `most`, behind a newest token at that place; none beyond the place `last`."""
    place = newest % PAGE_TOKENS
    return max(0, min(most, last - newest, PAGE_TOKENS - 2 - place, most if place else 1))


def computed(newest: torch.Tensor, last: torch.Tensor, each: int) -> torch.Tensor:
    """bool [N, each]: which of the newest token, at places int64 [N], and the each - 1 places behind it are computed.
    None are where the newest token itself lies beyond `last` [N]: that request has ended.
    """
    behind, place = torch.arange(each, device=newest.device), (newest % PAGE_TOKENS).unsqueeze(1)
    fits = (behind <= PAGE_TOKENS - 2 - place) & ((place > 0) | (behind <= 1)) | (behind == 0)
    return fits & (newest.unsqueeze(1) + behind <= last.unsqueeze(1))
