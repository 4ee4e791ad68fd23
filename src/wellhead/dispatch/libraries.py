"""Libraries that may be missing or broken: asked for, never trusted."""

from __future__ import annotations

import importlib
import platform
import re
from dataclasses import dataclass
from importlib import metadata

UNKNOWN = "unknown"

SUPPORTED: dict[str, tuple[str, str | None]] = {
    "python": ("3.11", "3.15"),
    "torch": ("2.11", None),
    "triton": ("3.6", None),
    "numpy": ("2.0", None),
    "safetensors": ("0.5", None),
    "tokenizers": ("0.21", None),
    "huggingface_hub": ("0.30", None),
    "rich": ("13.7", None),
    "fastapi": ("0.115", None),
    "uvicorn": ("0.30", None),
    "pydantic": ("2.7", None),
    "prometheus_client": ("0.20", None),
    "llguidance": ("1.9", None),
}
"""name -> (oldest version that fits, first that does not), as in pyproject.toml (tests/dispatch/test_probing.py)."""

NEEDED = ("torch", "triton", "numpy", "safetensors", "tokenizers", "huggingface_hub", "rich")
SERVING = ("fastapi", "uvicorn", "pydantic", "prometheus_client", "llguidance")
"""What only `wellhead serve` imports (the extra of that name)."""


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
        version = _version(name, importlib.import_module(name))
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


def pinned(name: str, by: str) -> str | None:
    """The one version of a library that the installed `by` asks for; None where it does not, or cannot be asked."""
    try:
        wanted = metadata.requires(by) or []
    except Exception:  # half an installation is reported by `probe`
        return None
    for requirement in wanted:
        if found := re.match(rf"(?:pytorch-)?{re.escape(name)}\s*\(?\s*==\s*([\w.+]+)", requirement):
            return found[1]
    return None


def _version(name: str, module: object) -> str:
    found = getattr(module, "__version__", None)
    if found is None:
        try:
            found = metadata.version(name)
        except Exception:  # imported from a folder that no installer knows
            found = UNKNOWN
    return str(found)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _misfit(name: str, version: str) -> str | None:
    if version == UNKNOWN:
        return "does not say its version"
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
