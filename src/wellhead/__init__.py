"""wellhead: run DeepSeek-V4 on the NVIDIA GPUs people own.

    from wellhead import LLM, SamplingParams

The two names are imported on first use, so that `wellhead --help` does not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wellhead.environment import wait_politely

if TYPE_CHECKING:
    from wellhead.engine.llm import LLM
    from wellhead.engine.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]

__version__ = "0.1.0.dev0"

wait_politely()


def __getattr__(name: str) -> object:
    if name == "LLM":
        from wellhead.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from wellhead.engine.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'wellhead' has no attribute {name!r}; it has {', '.join(__all__)}")
