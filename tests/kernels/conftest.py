"""Under Triton's interpreter, kernels round as a card does."""

import os

from wellhead.testing import interpreter

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.repair()
