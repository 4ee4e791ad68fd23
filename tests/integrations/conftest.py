"""Kernels of these tests run under the interpreter with the card's rounding, or on the card."""

from __future__ import annotations

import os

from wellhead.testing import interpreter

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.repair()
