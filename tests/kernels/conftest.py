"""Where the kernels of these tests run: under the interpreter, on the card, or as another card's code on a Hopper.

`pytest tests/kernels/interpreted_*.py --code-of sm120` compiles every kernel for SM120 and runs that code on an sm_90
card; `--code-of sm80` does the same for Ampere.
"""

from __future__ import annotations

import os

import pytest

from wellhead.testing import interpreter

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.repair()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--code-of", metavar="ARCH", help="run the code of sm120 or sm80, moved to the sm_90 card here")


def pytest_configure(config: pytest.Config) -> None:
    arch = config.getoption("--code-of", default=None)
    if arch is not None:
        from wellhead.testing.moved import adopt

        adopt(arch)
