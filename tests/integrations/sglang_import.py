"""SGLang's own code without its compiled runtime: import it, load our plugin by its loader, say what was stubbed.

SGLang is whatever `import sglang` finds: installed, or a folder of its sources on PYTHONPATH (tools/sglang_sources.py
makes one). Third-party modules of `STUBS` that cannot be imported become empty ones; everything else is real or fails.
While SGLang is imported torch says that there is no card, so that no compiled kernel is asked for; afterwards SGLang is
told, by its own `override_platform`, that the card is SM120, and tensors live wherever the tests put them.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

OPS = "mla,indexer,moe,mhc,linear"
STUBS = (
    "torchvision", "pybase64", "zmq", "IPython", "aiohttp", "pynvml", "sentencepiece", "tvm_ffi", "partial_json_parser",
    "openai", "setproctitle", "psutil", "fastapi", "uvicorn", "uvloop", "regex", "tiktoken", "xxhash", "interegular",
    "easydict", "distro", "scipy", "gguf", "PIL", "requests", "starlette",
)  # fmt: skip
"""What SGLang imports at its top and none of the code under test uses."""
ROOT = Path(__file__).resolve().parents[2]

stubbed: set[str] = set()


class Open(type):
    """A class that has every attribute, each such a class again."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Open(name, (), {})

    def __new__(mcs, name: str, bases: Any, body: Any, **_: Any) -> Any:
        return super().__new__(mcs, name, bases, body)

    def __init__(cls, name: str, bases: Any, body: Any, **_: Any) -> None:
        super().__init__(name, bases, body)

    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        return importlib.import_module("pydantic_core.core_schema").any_schema()


class Nothing(types.ModuleType):
    """A module that has every name, each an `Open` class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = Open(name, (), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last on sys.meta_path: what nothing else finds, of the packages named."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in STUBS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        stubbed.add(spec.name.partition(".")[0])
        return Nothing(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def load() -> None:
    """Import SGLang and load the plugin with every op asked for; a second call does nothing."""
    if any(isinstance(finder, Stubs) for finder in sys.meta_path):
        return
    if listed := os.environ.get("SGLANG_MODULES"):
        atexit.register(lambda: Path(listed).write_text("\n".join(files()), encoding="utf-8"))
    importlib.import_module("transformers")  # before the stubs: it asks whether torchvision exists, and must hear no
    sys.meta_path.append(Stubs())
    entry_point()
    os.environ.setdefault("WELLHEAD_OPS", OPS)
    visible = torch.cuda.is_available
    torch.cuda.is_available = lambda: False
    try:
        from sglang.srt.runtime_context import override_platform

        override_platform(is_sm120=True).install()
        for name in ("deepseek_v4", "deepseek_v4_boundary"):
            importlib.import_module(f"sglang.srt.models.{name}")
        importlib.import_module("sglang.srt.layers.attention.deepseek_v4_backend")
        from sglang.srt.plugins import load_plugins

        load_plugins()
    finally:
        torch.cuda.is_available = visible


def entry_point() -> None:
    """Make the plugin discoverable where wellhead runs from its sources: metadata with the entry point of ours."""
    found = importlib.metadata.entry_points(group="sglang.srt.plugins")
    if any(point.name == "wellhead" for point in found):
        return
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["sglang.srt.plugins"]
    folder = Path(tempfile.mkdtemp()) / "wellhead-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: wellhead\nVersion: 0\n", encoding="utf-8")
    lines = ["[sglang.srt.plugins]", *(f"{name} = {value}" for name, value in points.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.path.insert(0, str(folder.parent))
    importlib.invalidate_caches()


def files() -> list[str]:
    """The source files of SGLang's modules that were imported, and of the packages above them."""
    return sorted(
        {
            str(module.__file__)
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] == "sglang" and str(getattr(module, "__file__", "")).endswith(".py")
        }
    )


def story() -> str:
    """Which of SGLang's modules were imported, and what was stubbed."""
    theirs = sorted(name for name, module in sys.modules.items() if name.startswith("sglang.") and module is not None)
    from sglang.srt.plugins.hook_registry import HookRegistry

    absent = [name for name in ("sgl_kernel", "flashinfer", "deep_gemm", "tilelang") if not _there(name)]
    return (
        f"SGLang {importlib.metadata.version('sglang')}: {len(theirs)} of its modules imported; stubbed: "
        f"{', '.join(sorted(stubbed)) or 'nothing'}; not there: {', '.join(absent) or 'nothing'}; hooked: "
        f"{', '.join(sorted(HookRegistry._patched))}"
    )


def _there(name: str) -> bool:
    return name not in stubbed and importlib.util.find_spec(name) is not None
