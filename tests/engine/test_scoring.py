"""Teacher-forced logits on a device take no more memory than was planned, and are those of the model in torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from wellhead.dispatch.spec import REFERENCE
from wellhead.engine.core import Engine
from wellhead.engine.device_runner import DeviceRunner
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.device_model import DeviceModel
from wellhead.model.load import load_model
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import WHOLE
from wellhead.model.stream import load_device_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS, CHUNK = 4, 300


def test_logits_are_made_in_as_many_rows_as_were_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, numerics = open_checkpoint(resolve_model()), Numerics.named("checkpoint")
    weights, _ = load_device_weights(checkpoint, WHOLE, DEVICE)
    model = DeviceModel(weights, checkpoint.config, numerics, impl=REFERENCE)
    reference = load_model(checkpoint, numerics)
    sizes: dict[str, Any] = {"max_running": SLOTS, "chunk_tokens": CHUNK, "num_pages": 4, "context_length": 1024}
    engine = Engine(
        model, None, frozenset(), **sizes,
        make_runner=partial(DeviceRunner, chunk_tokens=CHUNK, context=1024, captured=False),
    )  # fmt: skip
    rows: list[int] = []
    real = DeviceModel.logits

    def counted(self: DeviceModel, streams: torch.Tensor, *more: Any) -> torch.Tensor:
        rows.append(len(streams))
        return real(self, streams, *more)

    monkeypatch.setattr(DeviceModel, "logits", counted)
    tokens = torch.randint(3, 200, (CHUNK + 129,), generator=torch.Generator().manual_seed(1)).tolist()
    found, expected = engine.logits(tokens), Engine(reference, None, frozenset(), **sizes).logits(tokens)
    assert rows == [128, 128, 44, 128, 1]  # of one request each, or of the warm-up
    error = float((found - expected).norm() / expected.norm())
    assert error <= (0.0 if DEVICE == "cpu" else 0.02)
