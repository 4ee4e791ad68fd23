"""Steps of a model whose own drafting layer (MTP) guesses the tokens behind the newest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from wellhead.engine import speculative
from wellhead.engine.request import Request
from wellhead.engine.runner import Runner
from wellhead.engine.scheduler import Work
from wellhead.model.batch import Batch, Chunk
from wellhead.model.load import DraftingModel

_Wanting = tuple[Request, Chunk, int]  # a request, its chunk of this application, how many drafts from here on


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
        speculative_tokens: int,
    ):  # fmt: skip
        super().__init__(model, num_pages, num_slots, window_pages)
        self._most = speculative_tokens
        self._streams = torch.empty(0)

    def compute(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        batch = Batch.build(chunks)
        self._streams = self.model.forward(batch, self.state)
        return self.model.logits(self._streams[batch.logits_at])

    def propose(self, work: Sequence[Work], chunks: Sequence[Chunk], found: Mapping[Request, list[int]]) -> None:
        accepted: list[Chunk] = []
        following: list[int] = []
        rows: list[int] = []
        first = 0
        wanting: list[_Wanting] = []
        for item, chunk in zip(work, chunks, strict=True):
            request, tokens = item.request, found.get(item.request, [])
            if request.error is not None:
                first += len(chunk.token_ids)
                continue
            count = item.tokens + max(0, len(tokens) - 1)
            end = chunk.start + count
            drafts = speculative.draft_count(request, end + 1, self._most) if tokens else 0
            own = replace(chunk, token_ids=chunk.token_ids[:count], logits="last" if drafts else "none")
            accepted.append(own)
            following += [*chunk.token_ids[1:count], tokens[-1] if tokens else request.tokens(end, end + 1)[0]]
            rows += range(first, first + count)
            first += len(chunk.token_ids)
            if drafts:
                wanting.append((request, own, drafts))
        if accepted:
            self._draft(self._streams[rows], following, accepted, wanting)

    def _draft(self, streams: torch.Tensor, following: list[int], chunks: list[Chunk], wanting: list[_Wanting]) -> None:
        """One application over `chunks`, whose tokens are followed by `following`, and more where drafts are wanted."""
        batch = Batch.build(chunks)
        streams = self.model.draft(streams, torch.tensor(following), batch, self.state)
        if not wanting:
            return
        streams = streams[batch.logits_at]
        guesses = [
            speculative.guess(row, request.params, request.generator)
            for row, (request, _, _) in zip(self.model.draft_logits(streams), wanting, strict=True)
        ]
        for draft, (request, _, _) in zip(guesses, wanting, strict=True):
            request.drafts.append(draft)
        again = [index for index, (_, _, left) in enumerate(wanting) if left > 1]
        if not again:
            return
        deeper = []
        for index in again:
            request, chunk, left = wanting[index]
            deeper.append((request, replace(chunk, token_ids=[guesses[index].token], start=chunk.end), left - 1))
        self._draft(
            streams[again], [guesses[index].token for index in again], [chunk for _, chunk, _ in deeper], deeper
        )
