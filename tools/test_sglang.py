#!/usr/bin/env python3
"""Our plugin against the newest published SGLang, without a GPU: `make test-sglang`.

    python3 -m tools.test_sglang --venv .venv-sglang                     # the newest release
    python3 -m tools.test_sglang --venv .venv-sglang --version 0.5.23

Installs SGLang's Python without its CUDA wheels into an environment of its own (about 2.6 GB), checks every contract,
runs the comparisons and lets SGLang's whole model answer questions. What moved in that release is named with its old
and its new signature. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tools.install import CPU_INDEX, ROOT, InstallError, pinned, step, wants_cpu_index

# Each in a process of its own: SGLang's settings are read at its import and published once.
TESTS = (
    ("tests/integrations/sglang_contract.py", "tests/integrations/sglang_comparisons.py"),
    ("tests/integrations/sglang_model.py",),
)
# Without their own dependencies, which would bring CUDA; at the versions that SGLang's metadata asks for.
BARE = ("apache-tvm-ffi", "compressed-tensors", "gguf", "openai", "transformers")
WHOLE = (
    "numpy", "msgspec", "pydantic", "orjson", "zstandard", "psutil", "packaging", "requests", "aiohttp", "fastapi",
    "uvicorn", "uvloop", "pyzmq", "setproctitle", "tqdm", "pybase64", "partial_json_parser", "python-multipart",
    "regex", "einops", "ipython", "pillow", "interegular", "prometheus-client", "sentencepiece", "dill", "scipy",
    "easydict", "distro", "tiktoken", "safetensors", "xxhash", "nvidia-ml-py", "cloudpickle", "huggingface_hub<2",
    "loguru", "sniffio", "jiter", "tokenizers<0.24", "pytest", "rich", "jinja2",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path(".venv-sglang"))
    parser.add_argument("--version", help="a release of SGLang; the newest if left out")
    given = parser.parse_args()
    try:
        python = install(given.venv.absolute(), given.version)
    except InstallError as error:
        print(f"test-sglang: {error}", file=sys.stderr)
        return 1
    environ = {
        **os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1",
        "WELLHEAD_ON_MISMATCH": "go-on",  # what still fits is compared; what moved fails by its own test
    }  # fmt: skip
    pytest = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return max(subprocess.run([*pytest, *files], cwd=ROOT, env=environ, check=False).returncode for files in TESTS)


def install(venv: Path, version: str | None) -> Path:
    """The environment's python, with SGLang and wellhead in it; what is there already is not fetched again."""
    python = venv / "bin" / "python"
    retry = "Nothing outside the environment was changed; the same command tries again."
    if not python.exists():
        step(f"make {venv}", [sys.executable, "-m", "venv", str(venv)], "On Debian: sudo apt install python3-venv.")
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    torch = [pinned("torch", constraints), *(["--index-url", CPU_INDEX, "--no-deps"] if wants_cpu_index() else [])]
    step("torch", [*pip, *torch], retry)
    step("what torch needs", [*pip, "filelock", "fsspec", "jinja2", "networkx", "sympy", "typing_extensions"], retry)
    sglang = f"sglang=={version}" if version else "sglang"
    step(sglang, [*pip, "--no-deps", "--upgrade", pinned("triton", constraints), sglang], retry)
    step("what SGLang imports", [*pip, *WHOLE], retry)
    step("and at its versions", [*pip, "--no-deps", *wanted(python)], retry)
    step("wellhead", [*pip, "--no-deps", "-e", "."], retry)
    return python


def wanted(python: Path) -> list[str]:
    """BARE at the versions of the installed SGLang's metadata."""
    code = "import json; from importlib.metadata import requires; print(json.dumps(requires('sglang')))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    asked = [line.partition(";")[0].strip() for line in json.loads(done.stdout) if "extra ==" not in line]
    named = {re.split(r"[<>=!~\[ ]", line)[0].replace("_", "-").lower(): line for line in asked}
    return [named.get(name, name) for name in BARE]


if __name__ == "__main__":
    sys.exit(main())
