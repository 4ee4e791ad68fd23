"""The shape of the embedded checkpoint, as a published `config.json`: the tests' small shape, its own vocabulary."""

from __future__ import annotations

from typing import Any

from wellhead.testing.checkpoints import tiny_config_dict

CONFIG: dict[str, Any] = tiny_config_dict(vocab_size=3072)
