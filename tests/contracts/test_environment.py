"""The registry of environment variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wellhead import environment


def test_default_model_is_the_variable_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WELLHEAD_MODEL", raising=False)
    assert environment.default_model() is None
    monkeypatch.setenv("WELLHEAD_MODEL", "")
    assert environment.default_model() is None
    monkeypatch.setenv("WELLHEAD_MODEL", "some/folder")
    assert environment.default_model() == "some/folder"


@pytest.mark.parametrize("name", ["WELLHEAD_MODLE", "WELLHEAD_MODELS", "WELLHEAD_ZZZ"])
def test_a_typo_names_the_nearest_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that resembles nothing: silence would mean the default."""
    monkeypatch.setenv(name, "x")
    for ask in (environment.check, environment.default_model):
        with pytest.raises(ValueError, match=rf"{name} .*the nearest is WELLHEAD_"):
            ask()


@pytest.mark.parametrize(
    ("code", "policy"),
    [
        ("import wellhead", "PASSIVE"),
        ("import os; os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'; import wellhead", "ACTIVE"),
        ("import sys; sys.modules['torch'] = sys; import wellhead", None),  # too late: OpenMP has read it
    ],
)
def test_openmp_threads_wait_politely_unless_told_otherwise(
    code: str, policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(environment.__file__).parents[1]))
    show = f"{code}; import os; print(os.environ.get('OMP_WAIT_POLICY'))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(policy)


def test_multicast_stays_off_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TORCH_SYMM_MEM_DISABLE_MULTICAST"
    for told, expected in ((None, "1"), ("0", "0")):
        monkeypatch.setattr(os, "environ", {} if told is None else {name: told})
        environment.without_multicast()
        assert os.environ == {name: expected}
