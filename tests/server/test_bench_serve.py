"""`wellhead bench serve` against our own server, and the arithmetic of its report."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fakes.server import RunningServer
from wellhead.cli import main
from wellhead.testing.load import Answered, Load, plan, run
from wellhead.testing.load_report import summary


@pytest.fixture(autouse=True)
def nothing_left(server: RunningServer) -> Iterator[None]:
    yield
    server.idle()


def test_it_measures_a_server(server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, each, picture = tmp_path / "load.jsonl", tmp_path / "each.jsonl", tmp_path / "load.png"
    status = main(
        f"bench serve --url {server.url} --requests 8 --rate 20 --max-tokens 4 --ignore-eos --prompt-words 6 "
        f"--prefix-words 80 --prefixes 1 --prefix-share 0.5 --jsonl {lines} --each {each} --picture {picture} "
        "--api-key secret --note shared".split()
    )
    assert status == 0
    said = capsys.readouterr().out
    assert said.startswith("8 answered, 0 failed in ") and "goodput" in said
    records = [json.loads(line) for line in (each.read_text() + lines.read_text()).splitlines()]
    assert [record["kind"] for record in records] == ["request"] * 8 + ["load"]
    assert records[-1]["note"] == "shared" and records[-1]["torch"] and records[-1]["commit"]
    assert records[-1]["command"].startswith("wellhead bench serve") and "secret" not in lines.read_text()
    assert all(record["tokens"] == 4 and 0 < record["first"] < record["last"] for record in records[:-1])
    assert records[-1]["url"] == server.url and records[-1]["ttft_p99_s"] >= records[-1]["ttft_p50_s"] > 0
    assert {record["shared"] for record in records[:-1]} == {True, False}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_fails_is_said(server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "load.jsonl"
    words = f"bench serve --url {server.url}/v1 --plain --requests 2 --model nobody --rate inf --jsonl {lines}"
    assert main([*words.split(), "--api-key=s3cret=="]) == 1
    said = capsys.readouterr()
    assert "--api-key=KEY" in lines.read_text() and "s3cret" not in lines.read_text()
    json.loads(lines.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert "0 answered, 2 failed" in said.out and "404" in said.err and "nobody" in said.err
    assert main("bench serve --url http://127.0.0.1:9 --requests 1".split()) == 2
    assert "is this an OpenAI endpoint?" in capsys.readouterr().err
    assert main("bench serve --rate 0".split()) == 2
    assert "rate is 0.0" in capsys.readouterr().err


def asked_of(lines: bytes) -> list[Answered]:
    """What two requests make of an endpoint that sends these lines."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + lines + b"\n\n")
        writer.close()

    async def both() -> list[Answered]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return await run(Load(requests=2, rate=math.inf), url, model="x")

    return asyncio.run(both())


@pytest.mark.parametrize("line", [b"data: {", b'data: {"usage": {}}', b'data: {"choices": 5}'])
def test_an_endpoint_that_sends_something_else(line: bytes) -> None:
    answered = asked_of(line)
    assert [one.error is not None for one in answered] == [True, True], answered


def test_an_answer_without_text_ends_with_its_first_token() -> None:
    """A model may say its end at once: that took time too, and percentiles must not become NaN."""
    end = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": null}\n\n'
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}\n\ndata: [DONE]'
    for one in asked_of(end + usage):
        assert one.error is None and one.tokens == 1 and 0 < one.first == one.last, one


def test_arrivals_are_poisson_and_repeatable() -> None:
    words = [str(i) for i in range(1000)]
    load = Load(requests=4000, rate=10, prompt_words=3, prefix_words=5, prefix_share=0.25, prefixes=2, seed=3)
    asked = plan(load, words)
    assert asked == plan(load, words) != plan(Load(**{**load.__dict__, "seed": 4}), words)
    gaps = [b.at - a.at for a, b in pairwise(asked)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    # four standard errors of an exponential's mean and deviation
    assert mean == pytest.approx(0.1, rel=4 / math.sqrt(4000)) and spread == pytest.approx(0.1, rel=8 / math.sqrt(4000))
    shared = [one for one in asked if one.shared]
    assert len(shared) == pytest.approx(1000, abs=4 * math.sqrt(4000 * 0.25 * 0.75))
    assert len({one.prompt.split("\n\n")[0] for one in shared}) == 2
    with pytest.raises(ValueError, match="there are 4 words"):
        plan(load, words[:4])


def test_the_report_counts_what_met_its_goal() -> None:
    answered = [
        Answered(at=0.0, shared=False, prompt_tokens=10, tokens=11, first=1.0, last=2.0),  # 0.1 s a token
        Answered(at=1.0, shared=True, prompt_tokens=10, tokens=11, first=0.5, last=2.5),  # 0.2 s
        Answered(at=2.0, shared=True, prompt_tokens=10, tokens=1, first=3.0, last=3.0),
        Answered(at=3.0, shared=False, error="429"),
    ]
    found = summary(Load(requests=4, rate=1), answered, slo_first=1.0, slo_per_token=0.15)
    assert (found["answered"], found["failed"], found["seconds"]) == (3, 1, 5.0)
    assert found["tokens_per_s"] == pytest.approx(23 / 5) and found["goodput_per_s"] == pytest.approx(1 / 5)
    assert found["goodput_share"] == 0.25 and found["ttft_p50_s"] == 1.0
    assert found["tpot_p50_s"] == pytest.approx(0.15) and found["ttft_shared_p50_s"] == pytest.approx(1.75)
    empty = summary(Load(), [Answered(0.0, False, error="x")], 1, 1)
    assert empty["answered"] == 0 and empty["ttft_p50_s"] is None
