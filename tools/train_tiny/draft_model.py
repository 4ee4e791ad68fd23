"""The training forward of the MTP layer over the streams of a frozen main model, applied to its own output for drafts
beyond the first.

Draft j (from 0) of origin p stands at position p + j: it reads the streams behind p (draft 0: the main model's, later
ones the layer's own of draft j - 1) and the token at p + j + 1, and guesses the token at p + j + 2. As in the engine it
attends to what draft 0 recorded of the origins up to p, and to the records of this origin's own drafts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wellhead.ops.norm_quant import reference as norm

from .initial import Weights
from .model import TrainModel

DRAFTS = 3
PREFIX = "mtp.0."


class FrozenModel(TrainModel):
    """The main model with weights that are what a checkpoint stores: nothing is left to round."""

    def fp8(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype)

    def fp4(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype)


class DraftModel(TrainModel):
    """The MTP layer. Weights under `PREFIX`, embedding and vocabulary matrix the main model's."""

    def chain(self, w: Weights, streams: Tensor, ids: Tensor) -> list[Tensor]:
        """Streams [B, S, n, d] behind every position, ids [B, S] -> the streams of each draft, by origin.

        Draft j of the last j + 1 origins has no token to read and means nothing.
        """
        found: list[Tensor] = []
        records: list[Tensor] = []
        for draft in range(DRAFTS):
            x = self.mixed(w, streams, ids.roll(-1 - draft, 1))
            streams, record, _ = self.block(
                x, w, PREFIX[:-1], ids, lambda u: self.draft_attention(u, w, f"{PREFIX}attn", tuple(records))
            )
            found.append(streams)
            records.append(record)
        return found

    def mixed(self, w: Weights, streams: Tensor, ids: Tensor) -> Tensor:
        """The layer's input: We norm(embedding) in every stream, plus Wh norm(stream)."""
        e = norm.rms_norm(w["embed.weight"].to(self.dtype)[ids.long()], w[f"{PREFIX}enorm.weight"], 1e-6)
        h = norm.rms_norm(streams, w[f"{PREFIX}hnorm.weight"], 1e-6)
        e = self.act(e) @ self.fp8(w[f"{PREFIX}e_proj.weight"]).T
        return e.unsqueeze(2) + self.act(h) @ self.fp8(w[f"{PREFIX}h_proj.weight"]).T

    def draft_attention(self, x: Tensor, w: Weights, p: str, records: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """x [B, S, d] by origin, records [B, S, D] of the drafts before -> (output [B, S, d], this draft's records)."""
        c, (b, s, _), draft = self.c, x.shape, len(records)
        origin = torch.arange(s, device=x.device)
        positions = (origin + draft).repeat(b)
        q, kv, _ = self.latents(x, w, p, positions, self.plain)
        first = records[0] if draft else kv
        age = origin[:, None] + draft - origin[None, :]
        visible = (age >= draft) & (age < c["sliding_window"])
        scale = c["head_dim"] ** -0.5
        scores = torch.einsum("bshd,bkd->bshk", q, first).float() * scale
        parts = [scores.masked_fill(~visible[:, None], float("-inf"))]
        own = torch.stack((*records[1:], kv), 2) if draft else None  # [B, S, draft, D]
        if own is not None:
            parts.append(torch.einsum("bshd,bsjd->bshj", q, own).float() * scale)
        parts.append(w[f"{p}.attn_sink"].expand(b, s, -1).unsqueeze(-1))
        prob = torch.softmax(torch.cat(parts, -1), -1).to(self.dtype)
        out = torch.einsum("bshk,bkd->bshd", prob[..., :s], first)
        if own is not None:
            out = out + torch.einsum("bshj,bsjd->bshd", prob[..., s : s + draft], own)
        return self.projected(out, w, p, positions, self.plain), kv


def warm_start(weights: Weights, layers: int, size: float) -> None:
    """Begin as the main model's last layer and head over streams of the size (RMS) that they have there."""
    for name in list(layer_names(weights)):
        rest = name.removeprefix(PREFIX)
        source = rest if rest.startswith(("hc_head", "norm.")) else f"layers.{layers - 1}.{rest}"
        if source in weights:
            weights[name].copy_(weights[source])
        elif rest in ("enorm.weight", "hnorm.weight"):
            weights[name].fill_(1.0)
        elif rest in ("h_proj.weight", "e_proj.weight"):
            weights[name].copy_(torch.eye(*weights[name].shape) * (size if rest[0] == "h" else 0.5 * size))
        else:
            raise ValueError(f"no start for {name}")


def layer_names(weights: Weights) -> list[str]:
    """Names of the MTP layer's weights."""
    return [name for name in weights if name.startswith(PREFIX)]
