"""What a step leaves of its tokens, where the model computed it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from wellhead.ops.sampling import reference as sampling


@dataclass(frozen=True)
class Scores:
    """Of N tokens, where the model computed them: rows `at` [N] of logits, fp32 [M, vocab] in `parts`, and of `best`
    int64 [M], their best id, first of equals.

    drafts int64 [S, k]: guesses behind the S requests whose newest token was in the step, if the runner has already
    made some (`Orders.following`). positions int64 [M]: of the rows' tokens, in a step that goes on from unread ones.
    """

    parts: Sequence[torch.Tensor]
    best: torch.Tensor
    at: Sequence[int]
    drafts: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    @classmethod
    def of(cls, logits: torch.Tensor) -> Scores:
        return cls([logits], logits.argmax(-1), range(len(logits)))

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """fp32 [len(tokens), vocab] on the host."""
        out = torch.empty(len(tokens), self.parts[0].shape[1] if tokens else 0)
        for mine, logits in self._rows(tokens):
            out[mine] = logits.cpu()
        return out

    def logprobs(self, tokens: Sequence[int], chosen: Sequence[int], top: Sequence[int]) -> list[dict[int, float]]:
        """`sampling.logprobs` of some tokens, computed where the logits are."""
        found: list[dict[int, float]] = [{}] * len(tokens)
        for mine, logits in self._rows(tokens):
            told = sampling.logprobs(logits, [chosen[place] for place in mine], [top[place] for place in mine])
            for place, one in zip(mine, told, strict=True):
                found[place] = one
        return found

    def _rows(self, tokens: Sequence[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(places in `tokens`, their logits) by part."""
        rows, low = [self.at[token] for token in tokens], 0
        for part in self.parts:
            mine = [place for place, row in enumerate(rows) if low <= row < low + len(part)]
            if mine:
                yield mine, part[[rows[place] - low for place in mine]]
            low += len(part)
