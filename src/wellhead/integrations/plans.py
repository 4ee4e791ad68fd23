"""Plans for engines that call an op whenever they like: made at the first call of a size and kept.

A plan owns workspaces that captured CUDA graphs know by address, so one that was used under capture is never dropped;
of the others the last `MOST` are kept. Sizes that may be larger than needed are rounded up to powers of two.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

from wellhead.dispatch.capability import here
from wellhead.dispatch.choose import choose
from wellhead.dispatch.features import Features
from wellhead.dispatch.spec import Sizes
from wellhead.model.device_kernels import functions_of
from wellhead.ops import registry

MOST = 64

_forced: dict[str, str] = {}
_kept: dict[Hashable, Any] = {}
_recent: OrderedDict[Hashable, Any] = OrderedDict()


def force(**impls: str) -> None:
    """Take that implementation of an op from now on ("auto": the first that fits); plans made so far are dropped."""
    _forced.update(impls)
    _kept.clear()
    _recent.clear()


@functools.cache
def _features() -> Features:
    return here()


def functions(op: str, sizes: Sizes) -> Any:
    """The functions of the implementation that the op chooses for `sizes` here, in the reference's or kernels' form."""
    return functions_of(op, choose(registry.spec(op), _features(), sizes, _forced.get(op)).impl)


def up(count: int) -> int:
    """The least power of two that is at least count."""
    return 1 << (max(1, count) - 1).bit_length()


def plan(key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` returned for that key; one for each stream, since plans that share a workspace must not overlap."""
    stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    key = (key, stream)
    found = _kept.get(key)
    if found is None:
        found = _recent.pop(key, None)
        if found is None:
            with torch.inference_mode(False):  # an inference tensor could not be written outside of it later
                found = make()
        if capturing:
            _kept[key] = found
        else:
            _recent[key] = found
            while len(_recent) > MOST:
                _recent.popitem(last=False)
    return found
