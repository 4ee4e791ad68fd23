"""What a programmatic dependent launch does before it waits for the kernel in front, read from what was compiled.

`ops.dependent_launch` says what a kernel may do until then: read weights, and what older kernels wrote. A compiler that
moved another load up, or a store, would read or write too early, and only sometimes.
"""

from __future__ import annotations

import re
from collections import defaultdict

from wellhead.dispatch.crosscompile import Compiled, disassemble
from wellhead.dispatch.spec import KernelBuild

WAIT, MACHINE_WAIT = "griddepcontrol.wait", "ACQBULK"
_LOAD = re.compile(r"\b(?:ld\.(?:\w+\.)*global|cp\.async\.(?:ca|cg|bulk))[\w.:]*")
_WRITE = re.compile(r"\b(?:st\.(?:\w+\.)*global|atom\.|red\.)")
_PARAM = re.compile(r"ld\.param\.\w+\s+(%\w+),\s*\[\w+_param_(\d+)\]")
_FORM = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s+(.*);")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_REGISTER = re.compile(r"%\w+")
_WRITTEN = re.compile(r"^\s*((?:@!?%\w+\s+)?[a-z][\w.:]*(?:\s[^/]*)?);")
_MACHINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")
_LABEL = re.compile(r"^\s*([.$]\w+):")
_JUMP = re.compile(r"\b(?:bra|BRA)\b[\w.]*\s*(.*?)`?\(?([.$]\w+)\)?$")
_ENDS = ("ret", "exit", "EXIT", "RET")


def early_arguments(build: KernelBuild, ptx: str) -> set[str]:
    """The pointer arguments that are read before the wait; none where the kernel does not wait."""
    if WAIT not in ptx:
        return set()
    passed = [name for name in build.kernel.arg_names if build.signature[name] != "constexpr"]
    reached: dict[str, set[str]] = defaultdict(set)
    steps = []
    for line in ptx.splitlines():
        if (param := _PARAM.search(line)) and int(param[2]) < len(passed):
            reached[param[1]].add(passed[int(param[2])])
        elif (form := _FORM.match(line)) and not _LOAD.search(line):
            target, *sources = _OPERAND.findall(form[2]) or [""]
            steps.append((_REGISTER.findall(target), _REGISTER.findall(" ".join(sources))))
    grown = True
    while grown:  # registers of a loop come from below
        grown = False
        for targets, sources in steps:
            found = set().union(*(reached[source] for source in sources))
            for target in targets:
                grown |= not found <= reached[target]
                reached[target] |= found
    names: set[str] = set()
    for line in before_the_wait(ptx, WAIT):
        if _LOAD.search(line):
            address = re.findall(r"\[([^\]]*)\]", line)[-1]
            names |= set().union(*(reached[register] for register in _REGISTER.findall(address)))
    return {name for name in names if build.signature[name].startswith("*")}


def complaints(compiled: Compiled) -> list[str]:
    """What the machine code does before the wait that the PTX does not, and what neither may; nothing of a kernel that
    does not wait.
    """
    if WAIT not in compiled.ptx:
        return []
    asked = before_the_wait(compiled.ptx, WAIT)
    found = [f"the PTX's {line.strip()} comes before it waits" for line in asked if _WRITE.search(line)]
    try:
        machine = disassemble(compiled.cubin)
    except ValueError:  # Triton 3.6 cannot read what it makes for sm_121
        return found
    early = [re.sub(r"^@!?U?P\w+\s+", "", line) for line in before_the_wait(machine, MACHINE_WAIT)]
    loads = sum(line.startswith(("LDG.", "LDGSTS.", "UBLKCP")) for line in early)
    wanted = sum(bool(_LOAD.search(line)) for line in asked)
    if loads > wanted:
        found.append(f"{loads} loads come before {MACHINE_WAIT}, {wanted} before the PTX's wait")
    found += [f"{line} comes before {MACHINE_WAIT}" for line in early if line.startswith(("STG", "ATOM", "RED."))]
    return found + [f"a program may end before {MACHINE_WAIT}" for line in early if line.startswith("EXIT")]


def before_the_wait(text: str, wait: str) -> list[str]:
    """The instructions, of PTX or of nvdisasm's text, that can be reached without passing `wait`."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif machine := _MACHINE.search(line):
            code.append(machine[1].strip())
        elif written := _WRITTEN.match(line):
            code.append(written[1].strip())
    seen: set[int] = set()
    ways = [0]
    while ways:
        at = ways.pop()
        if at in seen or at >= len(code) or wait in code[at]:
            continue
        seen.add(at)
        guarded = code[at].startswith("@")
        bare = re.sub(r"^@\S+\s+", "", code[at])
        if jump := _JUMP.search(bare):
            ways.append(labels[jump[2]])
            guarded |= "P" in jump[1]  # BRA.U UP0, label
        if guarded or not (jump or bare.startswith(_ENDS)):
            ways.append(at + 1)
    return [code[at] for at in sorted(seen)]
