"""Steps of a model whose own drafting layer (MTP) guesses the tokens behind the newest one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wellhead.engine.drafting import DrawnDrafts
from wellhead.engine.orders import DraftOrders
from wellhead.engine.runner import Runner
from wellhead.engine.scores import Scores
from wellhead.engine.story import Phase, untold
from wellhead.model.batch import Batch, Chunk
from wellhead.model.load import DraftingModel


class SpeculativeRunner(Runner):
    """After every step the drafting layer follows over the step's accepted tokens, which fills its own window cache,
    and is then applied again and again to its own output, up to `speculative_tokens` times in all.

    What it wrote for a draft is written again when the model has computed that position. Its record of a page's last
    token looks at the token behind it; a request that resumes there from the prefix cache finds the one of the request
    that left the page. Drafts may differ for it, what is accepted does not depend on them.
    """

    model: DraftingModel

    def __init__(
        self, model: DraftingModel, num_pages: int, num_slots: int, window_pages: int | None = None, *,
        speculative_tokens: int, phase: Phase = untold,
    ):  # fmt: skip
        super().__init__(model, num_pages, num_slots, window_pages, phase=phase)
        self.proposer = DrawnDrafts(speculative_tokens)
        self._streams = torch.empty(0)

    def compute(self, chunks: Sequence[Chunk], rows: Sequence[int] = ()) -> Scores:
        batch = Batch.build(chunks)
        self._streams = self.model.forward(batch, self.state)
        return Scores.of(self.model.logits(self._streams[batch.logits_at]))

    def draft(self, orders: DraftOrders) -> torch.Tensor:
        """fp32 [N, vocab] at the chunks that want a guess."""
        batch = Batch.build(orders.chunks)
        streams = self.model.draft(self._streams[orders.rows], torch.tensor(orders.following), batch, self.state)
        self._streams = streams[batch.logits_at]
        return self.model.draft_logits(self._streams)
