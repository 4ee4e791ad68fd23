"""The registry of environment variables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wellhead import environment


def test_default_model_is_the_variable_or_none() -> None:
    assert environment.default_model({"WELLHEAD_MODEL": "some/folder"}) == "some/folder"
    assert environment.default_model({"WELLHEAD_MODEL": ""}) is None
    assert environment.default_model({"PATH": "/bin"}) is None


def test_a_typo_names_the_nearest_variable() -> None:
    with pytest.raises(ValueError, match=r"WELLHEAD_MODLE .*nearest is WELLHEAD_MODEL"):
        environment.check({"WELLHEAD_MODLE": "x"})
    # Also one that resembles nothing: silence would mean the default.
    with pytest.raises(ValueError, match="WELLHEAD_ZZZ"):
        environment.default_model({"WELLHEAD_ZZZ": "x"})


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WELLHEAD_MODEL", "from/process")
    assert environment.default_model() == "from/process"
    monkeypatch.setenv("WELLHEAD_MODELS", "x")
    with pytest.raises(ValueError, match="WELLHEAD_MODELS"):
        environment.check()


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


def test_multicast_stays_off_unless_told_otherwise() -> None:
    variables: dict[str, str] = {}
    environment.without_multicast(variables)
    assert variables == {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
    told = {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "0"}
    environment.without_multicast(told)
    assert told == {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "0"}
