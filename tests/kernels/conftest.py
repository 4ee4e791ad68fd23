"""Where the kernels of these tests run: under the interpreter, on the card, or as SM120's own code on a Hopper.

`pytest tests/kernels/interpreted_*.py --sm120` compiles every kernel for SM120 and runs that code on an sm_90 card.
"""

from __future__ import annotations

import os

import pytest

from wellhead.testing import interpreter

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.repair()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sm120", action="store_true", help="run SM120's code, moved to sm_90a; needs an sm_90 card")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--sm120", default=False):
        from wellhead.testing.sm120_on_hopper import adopt

        adopt()
