"""`wellhead serve` as a process: what it says, how it ends, and what it refuses before it takes memory."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from wellhead import environment

SOURCE = str(Path(environment.__file__).parents[1])
SMALL = ["--num-pages", "8", "--context-length", "1024", "--max-running-requests", "4", "--port", "0"]
ASK = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0, "max_tokens": 8}


class Process:
    def __init__(self, *words: str):
        env = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wellhead", "serve", *words], stderr=subprocess.PIPE, text=True, env=env
        )
        self.pid, self.lines = self._process.pid, []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))

    def url(self, seconds: float = 90) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in self.lines:
                if found := re.search(r"ready after .* at (http://\S+)", line):
                    return found[1]
            time.sleep(0.05)
        raise AssertionError("\n".join(self.lines))

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 40) -> int:
        status = self._process.wait(seconds)
        self._reader.join(5)
        return status

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.end()


def test_told_to_end_it_finishes_what_runs(started: list[Process], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    process = Process(*SMALL, "--api-key-file", str(key), "--served-model-name", "mine")
    started.append(process)
    url = process.url()
    headers = {"Authorization": "Bearer s3cret"}
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers=headers).json()["data"][0]["id"] == "mine"
    found: list[httpx.Response] = []

    def ask() -> None:
        body = {**ASK, "ignore_eos": True, "max_tokens": 40}
        found.append(httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    while "wellhead_requests_running 1.0" not in httpx.get(f"{url}/metrics", headers=headers).text:
        time.sleep(0.01)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    asking.join()
    assert found[0].status_code == 200 and found[0].json()["usage"]["completion_tokens"] == 40
    assert any("1 answers have 30 s to finish" in line for line in process.lines), process.lines
    if shutil.which("curl") is not None:
        done = subprocess.run(["curl", "-s", url], capture_output=True, check=False)
        assert done.returncode == 7  # nobody listens


def test_curl(started: list[Process]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    process = Process(*SMALL, "--thinking")
    started.append(process)
    url = process.url()
    body = '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'
    command = ["curl", "-sS", "--max-time", "60", f"{url}/v1/chat/completions", "-d", body]
    assert b"Content-Type" in subprocess.run(command, capture_output=True, check=True).stdout  # curl says it is a form
    command += ["-H", "Content-Type: application/json"]
    said = subprocess.run(command, capture_output=True, check=True).stdout
    assert b'"content":"Paris"' in said and b'"reasoning_content":"France: Paris"' in said
    process.signal(signal.SIGINT)
    assert process.wait() == 0


def test_a_rank_that_dies_ends_the_server(started: list[Process]) -> None:
    process = Process(*SMALL, "--tp", "2")
    started.append(process)
    url = process.url()
    answer = httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == "Paris"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("this kernel does not list a process's children")
    for child in children.read_text().split():
        if b"--rank\x001\x00" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    assert process.wait() == 2
    assert any("rank 1 was killed by SIGKILL; all ranks are ended" in line for line in process.lines), process.lines


def test_ranks_told_to_end_finish_what_runs(started: list[Process]) -> None:
    process = Process(*SMALL, "--tp", "2")
    started.append(process)
    url = process.url()
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True, "ignore_eos": True}, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--context-length", "1"], "context_length is 1, expected 2 to the model's"),
        (["no/such/folder"], "no/such/folder"),
        (["--mem-fraction", "0.9"], "mem_fraction is 0.9 on device 'cpu'"),
        (["--max-queued-requests", "-1"], "--max-queued-requests -1: expected at least 0"),
        (["--max-running-requests", "0"], "--max-running-requests 0: expected at least 1"),
        (["--num-pages", "0"], "--num-pages 0: expected at least 1"),
        (["--chunked-prefill-size", "31"], "--chunked-prefill-size 31: expected at least 32, what a step of"),
        (["--request-timeout", "nan"], "--request-timeout nan: expected more than 0 seconds"),
        (["--grace", "inf"], "--grace inf: expected a finite number of seconds"),
        (["--device", "gpu"], "--device gpu: expected cpu or cuda"),
        (["--cuda-graph-max-bs", "8"], "--cuda-graph-max-bs 8: expected at least 1, with --device cuda"),
        (["--api-key", ""], "the API key is empty"),
        (["--speculative-tokens", "9"], "speculative_tokens is 9"),
        (["--tp", "2", "--device", "cuda:1"], "--device cuda:1 with --tp 2: expected cpu or cuda"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    from wellhead.cli import main

    assert main(["serve", "--port", "0", *words]) == 2
    told = capfd.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("wellhead: error:")]
    assert len(lines) == 1 and said in lines[0], lines
    assert "loading weights" not in told  # said before it takes memory


def test_a_server_that_everybody_reaches_says_so(started: list[Process]) -> None:
    process = Process(*SMALL, "--host", "0.0.0.0")
    started.append(process)
    process.url()
    assert any("whoever reaches this address may use it" in line for line in process.lines), process.lines
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_port_that_is_taken(capfd: pytest.CaptureFixture[str]) -> None:
    from wellhead.cli import main

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert main(["serve", "no/such/folder", "--port", str(sock.getsockname()[1])]) == 2
    said = capfd.readouterr().err
    assert "cannot listen on 127.0.0.1" in said and "--port" in said and "no/such" not in said
