"""Train `tiny` on one GPU: restartable, ten minutes at a time.

    python -m tools.train_tiny.train --state STATE --minutes 8 --until 0.5 [--sparse]

STATE is a folder that holds tokenizer.json, weights in bf16 (files of at most 16 MiB), progress.json and, on the same
machine, the exact fp32 weights. Progress runs from 0 to 1 over all runs; the learning rate falls to zero at 1. With
--sparse the indexer's top-k selects what attention sees; before that all complete entries are visible.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from . import batches, state
from .batches import FAMILIES, Rows, Shape
from .config import CONFIG
from .graphs import captured, compile_parts
from .model import TrainModel
from .optimizer import Optimizers

SHORT, RECALL, LENGTH = 40, 24, 512


class Trainer:
    """One CUDA graph for forward and backward, one for the optimisers, over fixed buffers."""

    def __init__(self, weights: dict[str, torch.Tensor], shape: Shape, sparse: bool) -> None:
        self.device = "cuda"
        self.sparse = sparse
        self.weights = {k: t.to(self.device) for k, t in weights.items()}
        self.trained = {k: t for k, t in self.weights.items() if k.split(".")[0] != "mtp" and t.is_floating_point()}
        self.trained = {k: t for k, t in self.trained.items() if not k.endswith("gate.bias")}
        for t in self.trained.values():
            t.requires_grad_(True)
            t.grad = torch.zeros_like(t)
        self.model = TrainModel(CONFIG, dtype=torch.bfloat16, quantize=True, device=self.device)
        compile_parts(self.model, "attention", "ffn")
        rows = shape[0] + shape[1]
        self.ids = torch.zeros(rows, shape[2], dtype=torch.int32, device=self.device)
        self.position = torch.zeros(rows, batches.ANSWERS, dtype=torch.int64, device=self.device)
        self.target = torch.zeros_like(self.position)
        self.optimizers = Optimizers(self.trained, self.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def forward_backward(self) -> None:
        for t in self.trained.values():
            t.grad.zero_()  # type: ignore[union-attr]
        streams, index_loss, self.loads = self.model.streams(self.weights, self.ids, self.sparse)
        picked = streams.gather(1, self.position[:, :, None, None].expand(-1, -1, *streams.shape[2:]))
        logits = self.model.logits(self.weights, picked)
        valid = self.target >= 0
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), self.target.flatten(), ignore_index=-1, reduction="sum"
        ) / valid.sum()
        weight = torch.full_like(index_loss, 0.05).scatter_add(1, self.position, valid.float())
        index = (index_loss * weight).sum() / weight.sum()
        (loss + index).backward()
        self.correct = (logits.argmax(-1) == self.target).detach()
        self.losses = torch.stack((loss.detach(), index.detach()))

    def update(self) -> None:
        self.optimizers.step()
        with torch.no_grad():
            for name, load in self.loads.items():
                if name in self.weights:
                    self.weights[name].add_(0.05 * self.optimizers.lr_muon * torch.sign(load.mean() - load))

    def capture(self) -> None:
        self.graph, self.update_graph = captured(self.forward_backward, self.update)

    def load(self, rows: Rows) -> None:
        for buffer, array in ((self.ids, rows.ids), (self.position, rows.position), (self.target, rows.target)):
            buffer.copy_(torch.from_numpy(array.astype("int32")).pin_memory(), non_blocking=True)

    def replay(self, train: bool) -> None:
        assert self.graph is not None
        self.graph.replay()
        if train:
            self.update_graph.replay()


def check(trainer: Trainer, held_out: list[Rows]) -> dict[str, float]:
    """Share of held-out examples whose every answer token is the arg-max given the true prefix."""
    right: dict[int, list[bool]] = {}
    for rows in held_out:
        trainer.load(rows)
        trainer.replay(train=False)
        correct = trainer.correct.cpu().numpy()
        for r in range(rows.ids.shape[0]):
            whole: dict[int, bool] = {}
            for i in range(batches.ANSWERS):
                if rows.family[r, i] >= 0:
                    key = int(rows.example[r, i]) * 8 + int(rows.family[r, i])
                    whole[key] = whole.get(key, True) and bool(correct[r, i])
            for key, ok in whole.items():
                right.setdefault(key % 8, []).append(ok)
    return {FAMILIES[f]: sum(oks) / len(oks) for f, oks in sorted(right.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="wall time of this run, compilation included")
    parser.add_argument("--until", type=float, required=True, help="progress reached at the end of this run")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--lr-muon", type=float, default=0.02)
    parser.add_argument("--lr-adam", type=float, default=0.003)
    parser.add_argument("--decay-from", type=float, default=0.4, help="progress from which the learning rate falls")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--rows", type=int, nargs=2, default=(SHORT, RECALL), help="short and recall rows a step")
    parser.add_argument("--workers", type=int, default=14)
    args = parser.parse_args()
    begun = time.time()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are forked
    torch.backends.cuda.matmul.allow_tf32 = True
    torch._dynamo.config.cache_size_limit = 64
    shape: Shape = (args.rows[0], args.rows[1], args.length)
    weights, progress = state.load(args.state)
    tok = Tokenizer.from_file(str(args.state / "tokenizer.json"))
    start, steps = progress["progress"], progress["steps"]
    queue = batches.start_workers(str(args.state / "tokenizer.json"), shape, args.workers, seed=steps + 1)
    rng = random.Random(12345)
    held_out = [batches.make_rows(tok, rng, *shape, test=True) for _ in range(4)]
    trainer = Trainer(weights, shape, args.sparse)
    trainer.load(queue.get())
    trainer.capture()
    ready = time.time()
    print(f"compiled and captured in {ready - begun:.0f} s", flush=True)
    deadline = begun + 60 * args.minutes
    first, told = steps, ready
    while (now := time.time()) < deadline:
        done = (now - ready) / max(deadline - ready, 1)
        at = start + (args.until - start) * done
        scale = min(1.0, (1 - at) / (1 - args.decay_from)) * min(1.0, (steps - first + 1) / 100)
        trainer.optimizers.set_rates(args.lr_muon * scale, args.lr_adam * scale)
        trainer.load(queue.get())
        trainer.replay(train=True)
        steps += 1
        if steps % 50 == 0:
            torch.cuda.synchronize()
        if now - told > 30 or steps - first == 200:
            told = now
            losses = trainer.losses.tolist()
            scores = " ".join(f"{k} {100 * v:.1f}" for k, v in check(trainer, held_out).items())
            rate = (steps - first) / (time.time() - ready)
            losses_told = f"loss {losses[0]:.4f} index {losses[1]:.3f}"
            print(f"{at:.3f} step {steps} {rate:.1f}/s {losses_told} | {scores}", flush=True)
    record = {
        "progress": args.until,
        "steps": steps,
        "held_out": check(trainer, held_out),
        "sparse": args.sparse,
        "gpu": torch.cuda.get_device_name(),
    }
    state.save(args.state, {k: t.detach().cpu() for k, t in trainer.weights.items()}, record)
    print(record, flush=True)


if __name__ == "__main__":
    main()
