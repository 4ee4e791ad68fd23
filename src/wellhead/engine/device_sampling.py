"""Sampled requests' next tokens drawn on the card, so that no logits travel to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import product
from typing import TYPE_CHECKING

import torch

from wellhead.dispatch.frozen import frozen
from wellhead.ops.host_copies import send
from wellhead.ops.sampling import api as sampling
from wellhead.ops.sampling.configs import rows_of_each

if TYPE_CHECKING:
    from wellhead.engine.request import Request
    from wellhead.engine.scores import Scores

COOLEST = 1e-6  # lower temperatures are the host's


class DeviceSampler:
    """Draws for up to `rows` tokens of a computation. A request's draws depend on its seed and on how many tokens it
    has, so that neither its neighbours, nor preemption, nor drafts change them; they are not the ones the host would
    make.
    """

    def __init__(self, rows: int, vocab_size: int, device: torch.device):
        self._plans = {
            (k, p): sampling.plan(rows, vocab_size, sampled=True, top_k=k, top_p=p, device=device)
            for k, p in product((False, True), repeat=2)
        }
        self._vocab_size = vocab_size

    def warm_up(self) -> None:
        """Compile every plan, for any number of rows."""
        for (k, p), plan in self._plans.items():
            for rows in rows_of_each(plan.rows, self._vocab_size):
                plan.set([1.0] * rows, [2 * k] * rows, [0.5 if p else 1.0] * rows, [0] * rows)
                out = torch.zeros(rows, dtype=torch.int64, device=plan.seed.device)
                plan.run(torch.zeros(rows, self._vocab_size, device=out.device), torch.zeros_like(out), out)

    def takes(self, request: Request) -> bool:
        """Whether a request's tokens can be drawn here: its logits are the model's own, its drafts nobody's draw."""
        drawn = any(draft.drawn_from is not None for draft in request.drafts)
        return request.params.temperature >= COOLEST and request.adjust is None and not drawn

    def draw(self, scores: Scores, spans: Mapping[Request, Sequence[int]]) -> torch.Tensor:
        """`scores.best`, with draws in place of the best ids of some requests' tokens in `scores`: a request's next one
        and those behind its drafts. Where tokens in front have not been read, `scores` has the rows' positions.
        """
        chosen, low = scores.best.clone(), 0
        rows = {
            scores.at[t]: (request, ahead) for request, span in spans.items() for ahead, t in enumerate(span)
        }
        for part in scores.parts:
            mine = {row - low: one for row, one in rows.items() if low <= row < low + len(part)}
            if mine:
                places = None if scores.positions is None else scores.positions[low : low + len(part)]
                own = chosen[low : low + len(part)].clone()  # begins where the kernels were compiled for
                with frozen() if own.device.type == "cuda" else nullcontext():
                    self._draw(part, own, mine, places)
                chosen[low : low + len(part)] = own
            low += len(part)
        return chosen

    def _draw(
        self, logits: torch.Tensor, chosen: torch.Tensor, wanted: Mapping[int, tuple[Request, int]],
        places: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """chosen [M] int64, of which the rows of `wanted` (whose, how many tokens ahead) are replaced."""
        rows = max(wanted) + 1
        temperature, top_k, top_p, seeds, position = [0.0] * rows, [0] * rows, [1.0] * rows, [0] * rows, [0] * rows
        for row, (request, ahead) in wanted.items():
            params = request.params
            temperature[row], top_p[row] = params.temperature, params.top_p
            top_k[row] = params.top_k if params.top_k < self._vocab_size else 0
            seeds[row] = (request.generator.initial_seed() + 2**63) % 2**64 - 2**63
            position[row] = len(request.output) + ahead if places is None else 1 - len(request.prompt)
        plan = self._plans[any(top_k), any(p < 1 for p in top_p)]
        plan.set(temperature, top_k, top_p, seeds)
        at = torch.empty(rows, dtype=torch.int64, device=logits.device)
        send(position, at)
        if places is not None:
            at.add_(places[:rows]).clamp_(min=0)  # padding lies in front of every answer
        plan.run(logits[:rows], at, chosen[:rows])
