"""Train the MTP layer of a checkpoint of `tiny`'s shape on its frozen main model, and write it back into its files:

    python -m tools.train_tiny.train_mtp --state STATE --minutes 4 [--checkpoint FOLDER] [--device cuda]
    python -m tools.train_tiny.train_mtp --state STATE --minutes 10 --device cpu --rows 3 2 --length 256 --workers 1

The layer learns what the main model says next: at every token of an answer three drafts in a chain, cross-entropy
against the main model's own distribution, in the precision that ships. It starts as a copy of the main model's last
layer. STATE keeps the weights every half minute: killed, the same command goes on where it was; progress runs from 0 to
1 over all runs, at 1 the checkpoint is written. Every byte that is not the MTP layer's is compared. The last lines are
the share of drafts accepted within held-out answers, by family.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from . import batches, state
from .batches import FAMILIES, Rows, Shape
from .config import CONFIG
from .draft_model import DRAFTS, PREFIX, DraftModel, FrozenModel, layer_names, warm_start
from .export import official
from .graphs import captured, compile_parts
from .initial import Weights
from .optimizer import Optimizers
from .patch import patch, read_weights

TINY = Path(__file__).parents[2] / "src" / "wellhead" / "data" / "tiny"
BEHIND = 0.1  # weight of a draft that lies behind its answer's end
Accepted = dict[str, list[float]]


def drafts_within(rows: Rows) -> np.ndarray:
    """int64 [B, ANSWERS]: how many drafts from each supervised position, its origin, lie within its answer."""
    follows = np.zeros(rows.position.shape, bool)
    follows[:, :-1] = (rows.target[:, 1:] >= 0) & (rows.example[:, 1:] == rows.example[:, :-1])
    follows[:, :-1] &= rows.position[:, 1:] == rows.position[:, :-1] + 1
    within = np.zeros(rows.position.shape, np.int64)
    for place in reversed(range(batches.ANSWERS - 1)):
        within[:, place] = np.where(follows[:, place], 1 + within[:, place + 1], 0)
    return np.minimum(within, DRAFTS)


class DraftTrainer:
    """One step over fixed buffers; on a card two CUDA graphs."""

    def __init__(self, weights: Weights, shape: Shape, device: str, compiled: bool) -> None:
        self.device = device
        self.weights = {k: t.to(device) for k, t in weights.items()}
        names = [name for name in layer_names(self.weights) if not name.endswith("gate.bias")]
        self.trained = {name: self.weights[name].requires_grad_(True) for name in names}
        for t in self.trained.values():
            t.grad = torch.zeros_like(t)
        self.frozen = FrozenModel(CONFIG, dtype=torch.bfloat16, quantize=True, device=device)
        self.model = DraftModel(CONFIG, dtype=torch.bfloat16, quantize=True, device=device)
        if compiled:
            compile_parts(self.frozen, "attention", "ffn")
            compile_parts(self.model, "draft_attention", "ffn")
        rows = shape[0] + shape[1]
        self.ids = torch.zeros(rows, shape[2], dtype=torch.int64, device=device)
        self.position = torch.zeros(rows, batches.ANSWERS, dtype=torch.int64, device=device)
        self.used = torch.zeros_like(self.position)
        self.within = torch.zeros_like(self.position)
        self.optimizers = Optimizers(self.trained, device)
        self.graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None = None

    def forward_backward(self) -> None:
        for t in self.trained.values():
            t.grad.zero_()  # type: ignore[union-attr]
        last = self.ids.shape[1] - 1
        with torch.no_grad():
            streams, _, _ = self.frozen.streams(self.weights, self.ids, True)
        losses, weights, correct = [], [], []
        for draft, found in enumerate(self.model.chain(self.weights, streams, self.ids)):
            place = self.position + draft + 1  # where the main model says what this draft guesses
            with torch.no_grad():
                said = self.frozen.logits(self.weights, picked(streams, place.clamp_max(last)))
            logits = self.model.logits(self.weights, picked(found, self.position), PREFIX)
            weight = torch.where(self.within > draft, 1.0, BEHIND) * self.used * (place <= last)
            losses.append((torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), said.softmax(-1).flatten(0, 1), reduction="none"
            ) * weight.flatten()).sum() / weight.sum().clamp_min(1))  # fmt: skip
            weights.append(weight)
            correct.append(logits.argmax(-1) == said.argmax(-1))
        torch.stack(losses).sum().backward()
        self.correct = torch.stack(correct, -1).detach()
        self.losses = torch.stack(losses).detach()

    def capture(self) -> None:
        self.graphs = captured(self.forward_backward, self.optimizers.step)

    def load(self, rows: Rows) -> None:
        arrays = (rows.ids, rows.position, rows.target >= 0, drafts_within(rows))
        for buffer, array in zip((self.ids, self.position, self.used, self.within), arrays, strict=True):
            source = torch.from_numpy(array.astype("int64"))
            buffer.copy_(source.pin_memory() if self.graphs else source, non_blocking=True)

    def step(self, train: bool) -> None:
        if self.graphs is None:
            self.forward_backward()
        else:
            self.graphs[0].replay()
        if train:
            self.optimizers.step() if self.graphs is None else self.graphs[1].replay()


def picked(streams: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Streams [B, S, n, d] at places [B, K]."""
    return streams.gather(1, place[:, :, None, None].expand(-1, -1, *streams.shape[2:]))


def accepted(trainer: DraftTrainer, held_out: list[Rows]) -> Accepted:
    """By family the share of first, second ... drafts within an answer that are right, and all before them too."""
    counts = np.zeros((len(FAMILIES), DRAFTS, 2))
    for rows in held_out:
        trainer.load(rows)
        trainer.step(train=False)
        right = trainer.correct.cpu().numpy().cumprod(-1)
        within = drafts_within(rows)
        for family in range(len(FAMILIES)):
            for draft in range(DRAFTS):
                counted = (rows.family == family) & (within > draft)
                counts[family, draft] += right[counted, draft].sum(), counted.sum()
    return {name: [round(r / n, 4) for r, n in each if n] for name, each in zip(FAMILIES, counts, strict=True)}


def started(args: argparse.Namespace) -> tuple[Weights, dict[str, Any]]:
    """The checkpoint's weights with the layer as far as STATE has it, or as it starts."""
    weights = read_weights(args.checkpoint)
    if (args.state / "progress.json").exists():
        kept, progress = state.load(args.state)
        return weights | kept, progress
    frozen = FrozenModel(CONFIG, dtype=torch.bfloat16, quantize=True, device="cpu")
    with torch.inference_mode():
        streams, _, _ = frozen.streams(weights, torch.arange(3, 259).view(1, -1), True)
    warm_start(weights, CONFIG["num_hidden_layers"], float(streams.float().square().mean().sqrt()))
    return weights, {"progress": 0.0, "steps": 0}


def options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder for the layer's weights between runs")
    parser.add_argument("--checkpoint", type=Path, default=TINY, help="changed in place (the embedded one)")
    parser.add_argument("--minutes", type=float, required=True, help="wall time of this run, compilation included")
    parser.add_argument("--until", type=float, default=1.0, help="progress reached at the end of this run (1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="kernels of torch as they are, on a card too")
    parser.add_argument("--lr-muon", type=float, default=0.02)
    parser.add_argument("--lr-adam", type=float, default=0.003)
    parser.add_argument("--decay-from", type=float, default=0.3, help="progress from which the learning rate falls")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, nargs=2, default=(44, 20), help="short and recall rows a step")
    parser.add_argument("--workers", type=int, default=14)
    return parser.parse_args()


def main() -> None:
    args, begun = options(), time.time()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are forked
    torch.backends.cuda.matmul.allow_tf32 = True
    torch._dynamo.config.cache_size_limit = 64
    shape: Shape = (args.rows[0], args.rows[1], args.length)
    weights, progress = started(args)
    start, steps = progress["progress"], progress["steps"]
    path = str(args.checkpoint / "tokenizer.json")
    queue = batches.start_workers(path, shape, args.workers, seed=7000 + steps)
    tok, rng = Tokenizer.from_file(path), random.Random(12345)
    on_card = args.device.startswith("cuda")
    held_out = [batches.make_rows(tok, rng, *shape, test=True) for _ in range(4)]
    trainer = DraftTrainer(weights, shape, args.device, on_card and not args.no_compile)

    def save(at: float) -> dict[str, Any]:
        record = {"progress": at, "steps": steps}
        layer = {k: trainer.weights[k].detach().cpu() for k in layer_names(trainer.weights)}
        state.save(args.state, layer, record)
        return record

    trainer.load(queue.get())
    if on_card:
        trainer.capture()
    ready = told = time.time()
    print(f"ready in {ready - begun:.0f} s", flush=True)
    deadline, first, at = begun + 60 * args.minutes, steps, start
    if ready >= deadline:
        raise SystemExit(f"--minutes {args.minutes} were over after {ready - begun:.0f} s of compilation; give more")
    while (now := time.time()) < deadline and start < args.until:
        at = start + (args.until - start) * (now - ready) / max(deadline - ready, 1)
        warm = min(1.0, (steps - first + 1) / (100 if on_card else 10))
        scale = warm * min(1.0, (1 - at) / (1 - args.decay_from))
        trainer.optimizers.set_rates(args.lr_muon * scale, args.lr_adam * scale)
        trainer.load(queue.get())
        trainer.step(train=True)
        steps += 1
        if on_card and steps % 50 == 0:
            torch.cuda.synchronize()
        if now - told > 30:
            told = now
            losses = " ".join(f"{loss:.4f}" for loss in trainer.losses.tolist())
            shares = " ".join(f"{k} {100 * v[0]:.0f}" for k, v in accepted(trainer, held_out[:1]).items() if v)
            print(f"{at:.3f} step {steps} {(steps - first) / (now - ready):.2f}/s loss {losses} | {shares}", flush=True)
            save(at)
    save(max(start, args.until))
    if max(start, args.until) >= 1:
        write(args.checkpoint, trainer, {"steps": steps, "accepted": accepted(trainer, held_out)}, on_card)


def write(folder: Path, trainer: DraftTrainer, record: dict[str, Any], on_card: bool) -> None:
    """The layer into the checkpoint's files, the record into its training.json, and both printed."""
    layer = {k: t.detach().cpu() for k, t in trainer.weights.items()}
    changed, kept = patch(folder, official(layer, PREFIX))
    print(f"{folder}: {changed} bytes of the MTP layer changed, {kept} others compared and the same")
    note = folder / "training.json"
    content = json.loads(note.read_text())
    content["mtp"] = record | {"gpu": torch.cuda.get_device_name() if on_card else "none"}
    note.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    for family, shares in record["accepted"].items():
        print(f"{family:<12} " + "  ".join(f"draft {i} {100 * share:5.1f} %" for i, share in enumerate(shares, 1)))


if __name__ == "__main__":
    main()
