"""The compile tier: every shipped build on SM120 and SM121, under every supported Triton that is there."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton")

from wellhead.dispatch.capability import SHARED_BYTES
from wellhead.ops import registry
from wellhead.testing.compile_column import Row, builds, column, compile_row, last_line, objections

# What kernels read before they wait for the kernel in front: weights, a step's inputs, lists that older ones wrote
EARLY = {
    "bf16_gemv_kernel": {"w"}, "contract_kernel": {"base_ptr", "norm_ptr", "scale_ptr"},
    "down_kernel": {"group_expert", "group_slots"}, "finish_kernel": {"base_ptr", "norm_ptr", "scale_ptr"},
    "fp8_gemv_kernel": {"w", "w_scale"}, "grouped_gemv_kernel": {"w", "w_scale"},
    "kv_store_kernel": {"freqs", "positions"}, "merge_kernel": {"freqs", "positions", "sink"},
    "mixing_kernel": {"base_ptr", "scale_ptr"}, "norm_quant_kernel": {"weight"}, "project_kernel": {"fn_ptr"},
    "rope_kernel": {"freqs", "positions"}, "round_query_kernel": {"freqs", "positions"}, "route": {"gate_ptr"},
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "src" / "wellhead" / "ops"


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


compile_table = tool("compile_table")
tritons = compile_table.tritons


@functools.cache
def rows_of(version: str) -> list[Row]:
    """One column; a version that is neither installed nor downloaded is skipped, and says so."""
    if version == tritons.installed():
        return column(compile_table.ARCHS)
    folder = tritons.ready(version)
    if folder is None:
        pytest.skip(f"Triton {version}: no column; `python3 tools/triton_versions.py` downloads it")
    return column(compile_table.ARCHS, folder)


@pytest.mark.parametrize("version", tritons.VERSIONS)
def test_column(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(version)
    assert {row.triton for row in rows} == {version}
    assert {row.arch for row in rows} == set(compile_table.ARCHS)
    with capsys.disabled():
        print(f"[compile tier: Triton {version}, {len(rows)} rows]", end=" ")
    assert not objections(rows), "\n".join(objections(rows))
    early: dict[str, set[str]] = {}
    for row in rows:
        if row.early:
            early.setdefault(row.kernel.split(":")[1], set()).update(row.early)
    assert early == EARLY


def test_what_only_warp_groups_hold_is_built_for_them_alone() -> None:
    given = [(op, build) for op, build in builds("sm90") if build.unit == "wgmma"]
    assert given and not any(build.unit for arch in compile_table.ARCHS for _, build in builds(arch))
    rows = [compile_row(op, build, "sm90") for op, build in given]
    assert not objections(rows), "\n".join(objections(rows))
    assert all(row.claim is not None and row.shared_bytes <= SHARED_BYTES["sm90"] for row in rows)
    if tritons.installed() == tritons.PINNED:
        assert not [row.where for row in rows if row.spill_bytes]


def jit_functions(folder: Path) -> Iterator[tuple[str, set[str]]]:
    """("module:name", what it calls or hands on, likewise) of every @triton.jit function below a folder of src."""
    for path in sorted(folder.rglob("*.py")):
        module = ".".join(path.relative_to(folder.parents[1]).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
        origin = {alias.asname or alias.name: f"{i.module}:{alias.name}" for i in imports for alias in i.names}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
                calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
                names = [name for call in calls for name in (call.func, *call.args) if isinstance(name, ast.Name)]
                yield f"{module}:{node.name}", {origin.get(name.id, f"{module}:{name.id}") for name in names}


def kernels(folder: Path) -> set[str]:
    """@triton.jit functions that no other one calls: those that are launched, or dead. One that is called `.._kernel`
    is launched, even if another calls it too.
    """
    found = list(jit_functions(folder))
    called = {name for caller, calls in found for name in calls if name != caller and not name.endswith("_kernel")}
    return {name for name, _ in found} - called


def test_every_kernel_that_exists_is_built() -> None:
    built = {row.kernel for row in rows_of(tritons.installed())}
    assert len(built) >= 3
    assert built == kernels(OPS)


def test_the_scan_finds_kernels_and_not_helpers(tmp_path: Path) -> None:
    ops = tmp_path / "wellhead" / "ops"
    (ops / "b").mkdir(parents=True)
    (ops / "a.py").write_text(
        "@triton.jit\ndef helper(x): return x\n"
        "@triton.jit(do_not_specialize=['n'])\ndef one(n): helper(n)\n"
        "def launcher(): one[(1,)](2)\n"
    )
    (ops / "b" / "kernels.py").write_text(
        "from wellhead.ops.a import helper as h\n@jit\ndef two(): h(1)\n@jit\ndef helper(): two.x()\n"
    )
    names = {"wellhead.ops.a:one", "wellhead.ops.b.kernels:two", "wellhead.ops.b.kernels:helper"}
    assert kernels(ops) == names
    (ops / "c.py").write_text("@triton.jit\ndef dead(): a_kernel()\n@triton.jit\ndef a_kernel(): pass\n")
    assert kernels(ops) == names | {"wellhead.ops.c:dead", "wellhead.ops.c:a_kernel"}


GOOD = Row("op", "b", "m:k", "sm120", "3.7.1", 4, 2, True, "bf16", 64, 101376, 0, ("mma.bf16",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shared_bytes": 101377}, "101377 B of shared memory"),
        ({"spill_bytes": 4}, "spills 4 B"),
        ({"torn": 2}, "2 E4M3 pairs are packed and shifted"),
        ({"order": ("STG.E comes before ACQBULK",)}, "STG.E comes before ACQBULK"),
        ({"mma": ("mma.f16",)}, "bf16 is claimed, the PTX has mma.f16"),
        ({"mma": ()}, "no tensor core"),
        ({"error": "CompilationError: no"}, "does not compile"),
        ({"arch": "sm90", "mma": ()}, "bf16 is claimed"),
        ({"arch": "sm90", "error": "no"}, "does not compile"),
    ],
)
def test_each_rule_objects(change: dict[str, object], words: str) -> None:
    found = objections([GOOD, dataclasses.replace(GOOD, **change)])  # type: ignore[arg-type]
    assert len(found) == 1 and words in found[0] and "op/b on" in found[0]


def test_what_the_rules_let_pass() -> None:
    elsewhere = dataclasses.replace(GOOD, arch="sm90", shared_bytes=200000, spill_bytes=8)
    cold = dataclasses.replace(GOOD, hot=False, spill_bytes=8)
    unclaimed = dataclasses.replace(GOOD, arch="sm80", claim=None, error="CompilationError: fp8")
    assert objections([GOOD, elsewhere, cold, unclaimed]) == []
    assert last_line("at 3:4\n  x = y\n      ^\nValueError('why')\n") == "ValueError('why')"


def test_what_other_cards_cannot_hold_is_named() -> None:
    rows = [dataclasses.replace(GOOD, arch=arch) for arch in compile_table.OTHERS]
    rows += [
        dataclasses.replace(GOOD, arch="sm86", build="large", shared_bytes=101377),
        dataclasses.replace(GOOD, arch="sm80", build="large", shared_bytes=101377, spill_bytes=4),
        dataclasses.replace(GOOD, arch="sm89", build="scaled", error="CompilationError: fp8"),
    ]
    assert compile_table.elsewhere(rows) == [
        "* sm80: 2 of 2 builds compile; all within 166,912 B a block; spilling: op/large 4 B",
        "* sm86: 2 of 2 builds compile; beyond a block's 101,376 B: op/large; none spills",
        "* sm89: 1 of 2 builds compile (not op/scaled); all within 101,376 B a block; none spills",
        "* sm90: 1 of 1 builds compile; all within 232,448 B a block; none spills",
    ]


def cells(text: str, arch: str) -> list[list[str]]:
    """The rows of one architecture's table."""
    lines = text.split(f"## {arch}\n")[1].split("\n## ")[0].splitlines()
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_the_committed_table_is_current() -> None:
    """Builds, configurations, instructions, shared bytes and spills of the pinned column; registers may drift."""
    if tritons.installed() != tritons.PINNED:
        pytest.skip(f"the table is made with Triton {tritons.PINNED}; {tritons.installed()} is installed")
    text = compile_table.TABLE.read_text(encoding="utf-8")
    position = 5 + tritons.VERSIONS.index(tritons.PINNED)
    for arch in compile_table.ARCHS:
        rows = [row for row in rows_of(tritons.PINNED) if row.arch == arch]
        written = cells(text, arch)
        assert [line[:4] for line in written] == [
            [row.op, row.build, str(row.num_warps), str(row.num_stages)] for row in rows
        ], "run python3 tools/compile_table.py"
        for line, row in zip(written, rows, strict=True):
            assert line[position].split(" / ")[1:3] == compile_table.cell(row).split(" / ")[1:3], row.where
            shown = line[4] if line[4] != "see cells" else line[position]
            assert shown.endswith(compile_table.instruction(row)), row.where
        assert all(len(line) == 5 + len(tritons.VERSIONS) for line in written)


def test_occupancy_is_bounded_by_each_resource() -> None:
    def blocks(**change: int) -> int:
        small = dataclasses.replace(GOOD, registers=32, shared_bytes=0, num_warps=2)
        return int(compile_table.blocks_an_sm(dataclasses.replace(small, **change)))

    assert blocks() == 24
    assert blocks(num_warps=8) == 6
    assert blocks(num_warps=4, registers=225) == 2
    assert blocks(shared_bytes=49152) == 2
    assert blocks(shared_bytes=101376) == 1


def test_no_kernel_takes_more_than_its_implementation_declares() -> None:
    """`choose` compares the declared shared memory with the card's."""
    declared = {
        (spec.name, build.name): impl.shared_bytes
        for spec in registry.specs()
        for impl in spec.impls
        for build in impl.builds()
        if impl.shared_bytes
    }
    rows = [row for row in rows_of(tritons.installed()) if (row.op, row.build) in declared]
    assert len(rows) > 50
    assert [row.where for row in rows if row.shared_bytes > declared[row.op, row.build]] == []
