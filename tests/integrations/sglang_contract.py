"""Every target of the plugin in the installed SGLang: its contract, and SGLang's variables that route to it.

`make test-sglang` runs it against the newest release.
A failure's last line names the target, the old and the new signature.
"""

from __future__ import annotations

import pytest

from integrations import sglang_import
from wellhead.integrations import sglang, targets

sglang_import.load()


@pytest.mark.parametrize("target", [*sglang.TARGETS, *sglang.LEANED_ON], ids=lambda target: target.path)
def test_a_contract_is_kept(target: targets.Target) -> None:
    targets.check(target)


@pytest.mark.parametrize("op", sglang.GROUPS)
def test_an_op_can_be_placed(op: str) -> None:
    assert sglang.refusals([op]) == {}


def test_the_release_is_one_that_was_tested(capsys: pytest.CaptureFixture[str]) -> None:
    untested = targets.outside("sglang", targets.installed("sglang"), sglang.FIRST, sglang.BELOW)
    if untested:
        with capsys.disabled():
            print(f"\n{untested}: where everything here passes, widen BELOW in integrations/sglang.py")
