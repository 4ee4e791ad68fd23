"""Muon for the hidden matrices (Jordan et al. 2024), AdamW for everything else; both safe inside a CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix of each g [n, r, c], by the quintic Newton-Schulz iteration, on a card in bf16."""
    a, b, c = _NEWTON_SCHULZ
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


def is_hidden_matrix(name: str, weight: Tensor) -> bool:
    """Matrices between hidden vectors; embeddings, head, router and hyper-connection maps go to AdamW."""
    if weight.dim() < 2 or not name.endswith(".weight"):
        return False
    return not any(part in name for part in ("embed", "head", ".gate.weight", "weights_proj"))


def adam_gain(name: str) -> float:
    """Learning rate of an AdamW tensor relative to the embedding's: maps that feed a softmax or sigmoid move slowly."""
    if name.endswith("_fn"):
        return 0.03
    if ".gate.weight" in name or "weights_proj" in name:
        return 0.1
    return 0.3 if "head" in name else 1.0


class Muon:
    """Nesterov momentum, orthogonalised per matrix; matrices of one shape are stacked and updated together."""

    def __init__(self, weights: dict[str, Tensor], lr: Tensor, momentum: float = 0.95, decay: float = 0.02) -> None:
        self.lr, self.momentum, self.decay = lr, momentum, decay
        shapes: dict[tuple[int, int], list[Tensor]] = {}
        for weight in weights.values():
            shapes.setdefault((weight.shape[-2], weight.shape[-1]), []).append(weight)
        self.groups = list(shapes.values())
        self.buffers = [torch.zeros_like(self._stack([w.detach() for w in group])) for group in self.groups]

    @staticmethod
    def _stack(tensors: list[Tensor]) -> Tensor:
        return torch.cat([t.reshape(-1, *t.shape[-2:]) for t in tensors])

    @torch.no_grad()
    def step(self) -> None:
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            grad = self._stack([w.grad for w in group])  # type: ignore[misc]
            buffer.lerp_(grad, 1 - self.momentum)
            update = orthogonalize(grad.lerp(buffer, self.momentum))
            rows, cols = update.shape[-2:]
            update = update * max(1.0, rows / cols) ** 0.5
            at = 0
            for w in group:
                count = w.numel() // (rows * cols)
                w.mul_(1 - self.lr * self.decay).sub_(self.lr * update[at : at + count].view_as(w))
                at += count


class Optimizers:
    """Muon for the hidden matrices of `trained`, AdamW for the rest, both with rates that a CUDA graph reads."""

    def __init__(self, trained: dict[str, Tensor], device: str) -> None:
        self.lr_muon = torch.zeros((), device=device)
        hidden = {k: t for k, t in trained.items() if is_hidden_matrix(k, t)}
        rest = [
            {"params": [t], "lr": torch.zeros((), device=device), "gain": adam_gain(k)}
            for k, t in trained.items()
            if k not in hidden
        ]
        self._muon = Muon(hidden, self.lr_muon)
        on_card = device.startswith("cuda")
        self._adam = torch.optim.AdamW(
            rest, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=on_card, capturable=on_card, foreach=False
        )

    def set_rates(self, muon: float, adam: float) -> None:
        self.lr_muon.fill_(muon)
        for group in self._adam.param_groups:
            group["lr"].fill_(adam * group["gain"])

    def step(self) -> None:
        self._muon.step()
        self._adam.step()
