"""Two ranks over gloo answer as one does; a launch starts its ranks, and none outlives another."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fakes import rank as fake_rank
from wellhead.cli import EXIT_ERROR, EXIT_INTERRUPTED, main
from wellhead.engine.launch import Ranks
from wellhead.engine.llm import LLM
from wellhead.engine.orders import DraftOrders, Orders
from wellhead.evals.against import judge_by
from wellhead.model.batch import Chunk
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.cut import cut
from wellhead.model.parameters import load_parameters
from wellhead.model.split import Split
from wellhead.model.weights import iter_tensors
from wellhead.testing.ties import TIE_MARGIN, Tally, judge

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {
    **os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"
}  # fmt: skip
WELLHEAD = [sys.executable, "-m", "wellhead"]
GONE_SECONDS = 10.0

# Largest relative error of logits, in norm: fp32 sums in another order; and the bf16 and E4M3 roundings those tip over.
LOGITS_BUDGET = {"exact": 1e-5, "checkpoint": 0.03}


def start(*words: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, text=True, env=VARIABLES, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, **options,
    )  # type: ignore[call-overload,no-any-return]  # fmt: skip


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def number_of(pid: int) -> int:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return int(words[words.index("--rank") + 1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_gone(pids: list[int]) -> bool:
    end = time.monotonic() + GONE_SECONDS
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.parametrize("experts", ["width", "expert"])
def test_the_parts_of_all_ranks_are_the_whole(experts: str) -> None:
    """Without a process: every tensor's parts, put side by side along the cut, are the unsplit tensor."""
    checkpoint = open_checkpoint(resolve_model())
    names = [name for name in checkpoint.tensors if name.startswith(("layers.1.", "embed", "head"))]
    splits = [Split(rank, 2, experts) for rank in range(2)]  # type: ignore[arg-type]
    whole, *parts = (
        load_parameters(iter_tensors(checkpoint, names), checkpoint.config, with_mtp=False, split=split)
        for split in (Split(), *splits)
    )
    divided = 0
    for name, tensor in whole.items():
        if all(torch.equal(part[name], tensor) for part in parts):
            continue
        divided += 1
        fits = [
            torch.equal(torch.cat([part[name] for part in parts], axis), tensor)
            for axis in range(tensor.dim())
            if sum(part[name].shape[axis] for part in parts) == tensor.shape[axis]
        ]
        assert any(fits), name
    assert divided == 2 + 4 + 3 + 3
    assert cut("layers.1.attn.indexer.wq_b", checkpoint.config, splits[1]) == (slice(None), slice(None))


def test_two_ranks_answer_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, script = tmp_path / "found.json", str(Path(fake_rank.__file__))
    meeting = f"file://{tmp_path / 'meeting'}"
    ranks = [start(sys.executable, script, str(r), "2", meeting, str(output)) for r in range(2)]
    llms = {numerics: fake_rank.load(numerics) for numerics in LOGITS_BUDGET}
    alone = {numerics: fake_rank.answers(llm) for numerics, llm in llms.items()}
    for process in ranks:
        _out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    for name, found in json.loads(output.read_text()).items():
        numerics = name.split()[1]
        tokens, logits = alone[numerics]
        theirs = torch.tensor(found["logits"])
        error = float((theirs - logits).norm() / logits.norm())
        tally = Tally()
        for place, (mine, other) in enumerate(zip(logits, theirs, strict=True)):
            budget = TIE_MARGIN[numerics]
            verdict = judge([int(other.argmax())], [int(mine.argmax())], lambda _, row=mine: row, budget)
            tally.add(verdict, f"row {place}")
        for asked, expected, other in zip(asked_ids(llms[numerics]), tokens, found["tokens"], strict=True):
            verdict = judge_by(llms[numerics], asked, other, expected, TIE_MARGIN[numerics])
            tally.add(verdict, f"prompt of {len(asked)} tokens")
        with capsys.disabled():
            print(f"\n{name}: error {error:.1e}; {tally.agreed} agree, ties: {tally.ties}", end="")
        assert error < LOGITS_BUDGET[numerics]
        assert not tally.wrong


def asked_ids(llm: LLM) -> list[list[int]]:
    long = fake_rank.teacher_forced()[:300]
    return [*(llm.encode(prompt) for prompt in fake_rank.PROMPTS), long, long]


def test_two_launches_meet_and_stop_together() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{free.getsockname()[1]}"
    words = [*WELLHEAD, "generate", "15 + 27 =", "--tp", "2", "--experts", "expert", "--nnodes", "2"]
    second, first = (start(*words, "--node-rank", str(node), "--master", master) for node in (1, 0))
    out, err = first.communicate(timeout=120)
    assert (first.returncode, out) == (0, " 42\n"), err
    out, err = second.communicate(timeout=GONE_SECONDS)
    assert (second.returncode, out) == (0, ""), err
    assert "host 1 of 2" in err


def test_a_rank_that_dies_takes_the_others_down() -> None:
    launch = start(*WELLHEAD, "chat", "--tp", "2")
    assert launch.stdin is not None and launch.stdout is not None
    launch.stdin.write("What is the capital of France?\n")
    launch.stdin.flush()
    assert launch.stdout.readline() == "Paris\n"
    ranks = {number_of(pid): pid for pid in children(launch.pid)}
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    _, err = launch.communicate(timeout=GONE_SECONDS)
    assert launch.returncode == EXIT_ERROR
    assert err.splitlines()[-1] == "wellhead: error: rank 1 was killed by SIGKILL; all ranks are ended"
    assert all_gone(list(ranks.values()))


# What a rank of the launches below does, without torch; {rank} and {lifeline} are filled in.
IDLE = "import time; from wellhead.engine.launch import hold; hold({lifeline}, {rank}); print('up', flush=True); "
LAUNCH = """
import sys
from wellhead.engine.launch import Ranks, launch
def command(rank, url, lifeline):
    code = sys.argv[1 + rank].replace("{{rank}}", str(rank)).replace("{{lifeline}}", str(lifeline))
    return [sys.executable, "-c", code, "--rank", str(rank)]
sys.exit(launch(Ranks(2), command))
""".replace("{{", "{").replace("}}", "}")


def idle(first: str = "time.sleep(60)", second: str = "time.sleep(60)") -> tuple[subprocess.Popen[str], list[int]]:
    """A launch of two ranks that say "up" and then do these; the launch, and its ranks' processes once rank 0 is up."""
    launch = start(sys.executable, "-c", LAUNCH, IDLE + first, IDLE + second)
    assert launch.stdout is not None and launch.stdout.readline() == "up\n"
    time.sleep(0.5)
    return launch, children(launch.pid) if alive(launch.pid) else []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_ranks_do_not_outlive_their_launch(number: signal.Signals) -> None:
    launch, ranks = idle()
    assert len(ranks) == 2
    launch.send_signal(number)
    assert launch.wait(GONE_SECONDS) != 0
    assert all_gone(ranks)


def test_ctrl_c_ends_all() -> None:
    launch, ranks = idle()
    os.killpg(launch.pid, signal.SIGINT)  # as a terminal does
    _, err = launch.communicate(timeout=GONE_SECONDS)
    assert launch.returncode == EXIT_INTERRUPTED
    assert "rank 1" not in err and all_gone(ranks)


def test_an_answered_ctrl_c_ends_nothing() -> None:
    """A chat's answer is stopped, and the next is asked for."""
    launch, _ = idle("\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('stopped', flush=True)\ninput()", "input")
    os.killpg(launch.pid, signal.SIGINT)
    assert launch.stdout is not None and launch.stdout.readline() == "stopped\n"
    assert launch.communicate("on\n", timeout=GONE_SECONDS)[0] == "" and launch.returncode == 0


def test_a_failing_rank_is_named_with_its_error() -> None:
    launch, _ = idle(second="raise MemoryError('too little of it')")
    _out, err = launch.communicate(timeout=GONE_SECONDS)
    assert launch.returncode == EXIT_ERROR
    assert "rank 1 failed with exit status 1: MemoryError: too little of it; all ranks are ended" in err


def test_a_rank_killed_by_a_signal_without_a_name() -> None:
    launch, _ = idle(second="import os; os.kill(os.getpid(), 35)")
    _out, err = launch.communicate(timeout=GONE_SECONDS)
    assert launch.returncode == EXIT_ERROR
    assert "rank 1 was killed by signal 35: up; all ranks are ended" in err


def test_orders_survive_the_way() -> None:
    chunks = [
        Chunk([5, 6, 7], 256, [3, 1], 2, "none", [-1, 4]),
        Chunk([9], 0, [0], 0, "all", None),
        Chunk([1, 2], 10, [7], 1, "last", [2]),
    ]
    orders = Orders(chunks, restores=[(4, 2)], saves=[(0, 3), (1, 5)], following=[8, -1, -1], rows=[2, 0])
    assert Orders.decode(orders.encode()) == orders
    assert Orders.decode(Orders([]).encode()) == Orders([], [], [], [], [])
    drafts = DraftOrders(chunks, [6, 7, 8, 1, 2, 3], [4, 5, 6, 0, 9, 8])
    assert DraftOrders.decode(drafts.encode()) == drafts


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--cp", "2"], "--cp 2: context parallelism is not implemented"),
        (["--tp", "2", "--device", "cuda:1"], "--device cuda:1 with --tp 2: expected cpu or cuda"),
        (["--tp", "3", "--nnodes", "2"], "as many ranks on every host"),
        (["--tp", "2", "--nnodes", "2"], "needs --master HOST:PORT"),
        (["--tp", "2", "--experts", "half"], "--experts half: expected width or expert"),
    ],
)
def test_what_does_not_exist_is_refused_at_once(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", *words]) == EXIT_ERROR
    assert reason in capsys.readouterr().err


def test_a_host_has_its_share_of_the_ranks() -> None:
    assert list(Ranks(8, 2, 1, "host:1").local) == [4, 5, 6, 7]
