"""Libraries that may be missing or broken: asked for, never trusted."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass

SUPPORTED: dict[str, tuple[str, str | None]] = {
    "python": ("3.11", "3.15"),
    "torch": ("2.11", None),
    "triton": ("3.6", None),
}
"""name -> (oldest version that fits, first that does not), as in pyproject.toml."""


@dataclass(frozen=True)
class Library:
    """`version` is None if and only if it cannot be used; `problem` then says why, and also of a misfit."""

    name: str
    version: str | None
    problem: str | None = None

    @property
    def fits(self) -> bool:
        return self.version is not None and self.problem is None


def probe(name: str) -> Library:
    """Import a library. Whatever it raises, SystemExit included, is its problem and not ours; Ctrl-C is the user's."""
    try:
        version = str(getattr(importlib.import_module(name), "__version__", "unknown"))
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name == name:
            return Library(name, None, "not installed")
        return Library(name, None, f"broken: importing it raised {type(error).__name__}: {error}")
    except BaseException as error:
        return Library(name, None, f"broken: importing it raised {type(error).__name__}: {_first_line(error)}")
    return Library(name, version, _misfit(name, version))


def python() -> Library:
    """The interpreter that runs this."""
    version = platform.python_version()
    return Library("python", version, _misfit("python", version))


def interpreter_on() -> bool:
    """Whether Triton runs kernels in its interpreter; False if it cannot be asked."""
    try:
        knobs = importlib.import_module("triton.knobs")
        return bool(knobs.runtime.interpret)
    except Exception:  # a broken Triton is already reported by `probe`
        return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _misfit(name: str, version: str) -> str | None:
    oldest, beyond = SUPPORTED.get(name, ("0", None))
    if _numbers(version) < _numbers(oldest):
        return f"{version} is older than {oldest}; upgrade it"
    if beyond is not None and _numbers(version) >= _numbers(beyond):
        return f"{version} is not supported; install one older than {beyond}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """ "2.13.0+cpu" -> (2, 13, 0)."""
    parts = version.split("+")[0].split(".")
    return tuple(int(part) if part.isdigit() else 0 for part in parts)
