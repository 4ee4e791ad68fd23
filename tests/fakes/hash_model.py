"""A model whose next token is a hash of all tokens so far, read back through the caches of the real model's shape.

A window record is the token's id. A ratio-4 entry hashes its block's four tokens and the four before, which come from
the state slot's ring if they are not in the batch; a ratio-128 entry its 128. A token's hash takes the last 128
window records and every entry: a wrong page, slot, ring or tail changes the text. Reading a page that is not there
raises.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

from wellhead.engine.sampling_params import SamplingParams
from wellhead.model.batch import Batch
from wellhead.ops.compressor.reference import ring_rows
from wellhead.ops.sampling.reference import sample

VOCAB, WINDOW, END = 40, 128, 1
RINGS = {4: ring_rows(4), 128: ring_rows(128)}
_WEIGHTS = np.random.default_rng(0).integers(1, 2**62, 1 << 14) | 1
_POISON = -987654321


def _mix(h: np.ndarray) -> np.ndarray:
    h = (h ^ (h >> 29)) * np.int64(0x3F58476D1CE4E5B9)
    return h ^ (h >> 32)


def _hash(values: np.ndarray) -> np.ndarray:
    """int64 [..., n] -> [...], sums wrap around."""
    return _mix((values * _WEIGHTS[: values.shape[-1]]).sum(-1))


def _token_hash(window: np.ndarray, c4: np.ndarray, c128: np.ndarray, position: int) -> np.ndarray:
    """int64 [1]; arrays, unlike scalars, wrap around without a warning."""
    return _mix(_hash(window[None]) * 3 + _hash(c4[None]) * 5 + _hash(c128[None]) * 7 + position)


def logits_of(hashes: np.ndarray) -> torch.Tensor:
    """fp32 [N, VOCAB] of hashes [N]."""
    mixed = _mix(hashes[:, None] + _WEIGHTS[:VOCAB])
    return torch.from_numpy((mixed & 0xFFFF).astype(np.float32) / 8192)


@dataclass
class HashState:
    """Caches full of poison: nobody may read what he did not write or was not given."""

    num_pages: int
    num_slots: int
    window_pages: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {
            "window": (self.window_pages, 256), "c4": (self.num_pages, 64), "c128": (self.num_pages, 2),
            "ring4": (self.num_slots, RINGS[4]), "ring128": (self.num_slots, RINGS[128]),
            "tail": (self.window_pages, 4),
        }  # fmt: skip
        self.arrays = {name: np.full(shape, _POISON) for name, shape in shapes.items()}

    def save_tail(self, slot: int, window_page: int) -> None:
        self.arrays["tail"][window_page] = self.arrays["ring4"][slot, -4:]

    def restore_tail(self, window_page: int, slot: int) -> None:
        self.arrays["ring4"][slot, -4:] = self.arrays["tail"][window_page]


class HashModel:
    """Stands where a LanguageModel does."""

    def __init__(self, context: int = 4096):
        self.config = SimpleNamespace(vocab_size=VOCAB, sliding_window=WINDOW, max_position_embeddings=context)
        self.numerics = None

    def allocate(self, num_pages: int, num_slots: int, window_pages: int | None = None) -> HashState:
        return HashState(num_pages, num_slots, num_pages if window_pages is None else window_pages)

    def forward(self, batch: Batch, state: HashState) -> torch.Tensor:
        """int64 [T] hashes, of the tokens that want logits."""
        arrays, out = state.arrays, np.zeros(len(batch.token_ids), np.int64)
        window, c4, c128 = (arrays[name].reshape(-1) for name in ("window", "c4", "c128"))
        ids, positions = batch.token_ids.numpy(), batch.positions.numpy()
        write = batch.slots(batch.positions, 0).numpy()
        assert (write >= 0).all() and len(set(write.tolist())) == len(write)
        window[write] = ids
        for row, (low, high) in enumerate(batch.ranges):
            slot, start = int(batch.state_slots[row]), int(positions[low])
            for ratio, pooled, pool, ring in (
                (4, 8, c4, arrays["ring4"][slot]), (128, 128, c128, arrays["ring128"][slot]),
            ):  # fmt: skip
                before = np.arange(max(0, start - pooled), start)
                tokens = np.concatenate((ring[before % len(ring)], ids[low:high]))
                ends = np.flatnonzero((positions[low:high] + 1) % ratio == 0)
                if len(ends):
                    entries, last = (torch.from_numpy(x) for x in (positions[low + ends] // ratio, low + ends))
                    places = ends[:, None] + len(before) + np.arange(1 - pooled, 1)
                    pool[batch.slots(entries, ratio, last).numpy()] = _hash(np.where(places >= 0, tokens[places], 0))
                kept = np.arange(max(low, high - len(ring)), high)
                ring[positions[kept] % len(ring)] = ids[kept]
        for token in batch.logits_at.tolist():
            out[token] = self._read(batch, token, int(positions[token]), window, c4, c128)[0]
        return torch.from_numpy(out)

    def logits(self, hashes: torch.Tensor) -> torch.Tensor:
        return logits_of(hashes.numpy())

    def describe(self) -> list[tuple[str, str, str]]:
        return []

    def _read(self, batch: Batch, token: int, position: int, *pools: np.ndarray) -> np.ndarray:
        read, row = [], int(batch.rows[token])
        window, logical = batch.window_table[row].numpy(), batch.page_table[row].numpy()
        first = max(0, position + 1 - WINDOW)
        for pool, table, ratio, low in zip(pools, (window, logical, logical), (1, 4, 128), (first, 0, 0), strict=True):
            records, size = np.arange(low, (position + 1) // ratio), 256 // ratio
            pages = table[records // size]
            assert (pages >= 0).all(), f"position {position} reads a page of ratio {ratio} that is not there"
            read.append(pool[pages * size + records % size])
        return _token_hash(*read, position)


def next_logits(tokens: list[int]) -> torch.Tensor:
    """fp32 [VOCAB] behind these tokens, from the tokens themselves."""
    known = np.array(tokens)
    padded = np.concatenate((np.zeros(4, np.int64), known))
    c4 = _hash(padded[np.arange(0, len(known) // 4 * 4, 4)[:, None] + np.arange(8)])
    c128 = _hash(known[: len(known) // 128 * 128].reshape(-1, 128))
    return logits_of(_token_hash(known[-WINDOW:], c4, c128, len(known) - 1))[0]


def answer(prompt: list[int], params: SamplingParams, max_tokens: int) -> list[int]:
    """What the model says when it is alone, from the tokens themselves; the seed must be given."""
    generator = torch.Generator().manual_seed(params.seed or 0)
    tokens, output = list(prompt), []
    while len(output) < max_tokens and (not output or output[-1] != END or params.ignore_eos):
        token = sample(next_logits(tokens), params.temperature, params.top_k, params.top_p, generator)
        tokens.append(token)
        output.append(token)
    return output
