"""The door over a real small model: requests together equal requests alone, and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from wellhead.engine.llm import LLM, RequestError
from wellhead.engine.sampling_params import SamplingParams

GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(2, 258, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(autouse=True)
def nothing_left(llm: LLM):  # type: ignore[no-untyped-def]
    yield
    llm.engine.check()
    assert llm.engine.free_pages == 6 and not llm.engine.busy
    # what one test leaves in the prefix cache must not help the next
    llm.engine.forget_prefixes()


def test_a_batch_equals_each_prompt_alone(llm: LLM) -> None:
    """Nine requests on four slots and six pages: chunked prefills, decodes and waiting mixed."""
    prompts = [prompt(n, n) for n in (1, 300, 5, 64, 65, 130, 128, 3, 260)]
    params = [
        SamplingParams(
            max_tokens=2 + i, ignore_eos=True, temperature=0.0 if i % 2 else 1.3, seed=i, top_p=0.9
        )
        for i in range(len(prompts))
    ]
    together = llm.generate(prompts, params)
    alone = [llm.generate([p], own)[0] for p, own in zip(prompts, params, strict=True)]
    assert together == alone
    assert [len(c.token_ids) for c in together] == [own.max_tokens for own in params]
    assert all(c.finish_reason == "length" for c in together)


def test_greedy_tokens_are_the_argmax_of_the_teacher_forced_logits(llm: LLM) -> None:
    ids = prompt(150, 1)
    (done,) = llm.generate([ids], GREEDY)
    logits = llm.logits(ids + done.token_ids[:-1])
    assert logits.dtype == torch.float32 and logits.shape == (157, 264)
    assert logits[149:].argmax(-1).tolist() == done.token_ids
    assert torch.equal(llm.logits(ids, chunks=[1, 100, 49]).argmax(-1), logits[:150].argmax(-1))


def test_logits_take_chunks_that_the_window_pages_hold(llm: LLM, folder: Path) -> None:
    """As generation does; a chunk that was asked for is refused, and the message names what is short."""
    narrow = LLM(folder, progress=False, num_pages=6, max_running=1, chunk_tokens=700, window_pages=2)
    assert torch.equal(narrow.logits(prompt(700)).argmax(-1), llm.logits(prompt(700)).argmax(-1))
    with pytest.raises(RequestError, match=r"2 window pages for 700 tokens more; .*smaller chunks"):
        narrow.logits(prompt(700), [700])
    narrow.engine.check()


def test_stream_equals_generate(llm: LLM) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=3, ignore_eos=True)
    (done,) = llm.generate(["Ölfaß"], params)
    deltas = list(llm.stream("Ölfaß", params))
    assert "".join(d.text for d in deltas) == done.text != ""
    assert [token for d in deltas for token in d.token_ids] == done.token_ids
    assert [d.finish_reason for d in deltas] == [None] * 29 + ["length"]
    assert done.prompt_tokens == 1 + len("Ölfaß".encode())


def test_closing_a_stream_frees_it_and_leaves_others_alone(llm: LLM) -> None:
    (expected,) = llm.generate([prompt(20)], GREEDY)
    first, second = llm.stream(prompt(300), GREEDY), llm.stream(prompt(20), GREEDY)
    next(first)
    tokens = list(next(second).token_ids)
    first.close()
    tokens += [token for delta in second for token in delta.token_ids]
    assert tokens == expected.token_ids


def test_a_stream_and_a_batch_share_steps(llm: LLM) -> None:
    stream = llm.stream(prompt(20), GREEDY)
    tokens = list(next(stream).token_ids)
    (other,) = llm.generate([prompt(21)], SamplingParams(max_tokens=20, ignore_eos=True))
    tokens += [token for delta in stream for token in delta.token_ids]
    assert tokens == llm.generate([prompt(20)], GREEDY)[0].token_ids
    assert len(other.token_ids) == 20


def test_abort_waiting_and_running(llm: LLM) -> None:
    engine = llm.engine
    # 4 pages, then 3 wanted of the 2 that the first will leave
    running = engine.make_request(prompt(1000), SamplingParams(max_tokens=20))
    waiting = engine.make_request(prompt(600), SamplingParams(max_tokens=20))
    engine.submit(running)
    engine.submit(waiting)
    engine.step()
    assert engine.free_pages == 5 and (engine.counters.running, engine.counters.waiting) == (1, 1)
    engine.abort(waiting)
    engine.abort(running)
    engine.abort(running)
    assert (running.finish_reason, waiting.finish_reason) == ("abort", "abort")


@pytest.mark.parametrize("length", [256, 300, 512, 700])
def test_a_reused_prefix_gives_the_same_tokens(llm: LLM, length: int) -> None:
    """The second request computes what lies behind the last page boundary before its last token, no more."""
    sampled = SamplingParams(max_tokens=12, temperature=1.0, seed=5, ignore_eos=True, logprobs=1)
    ids = prompt(length, 40)
    (first,) = llm.generate([ids], sampled)
    before = llm.engine.counters.prefix_hit_tokens
    (second,) = llm.generate([ids], sampled)
    assert second == first
    assert llm.engine.counters.prefix_hit_tokens - before == (length - 1) // 256 * 256


def test_a_shared_beginning_gives_the_same_tokens(llm: LLM) -> None:
    """Chunks of 64 tokens end at every page boundary, so the second prompt already finds a cut."""
    common = prompt(520, 41)
    prompts = [common + prompt(250, seed) for seed in (1, 2, 3)]
    hits, found = [], []
    for ids in prompts:
        before = llm.engine.counters.prefix_hit_tokens
        found += llm.generate([ids], GREEDY)
        hits.append(llm.engine.counters.prefix_hit_tokens - before)
    assert hits == [0, 512, 512]
    llm.engine.forget_prefixes()
    assert found == [llm.generate([ids], GREEDY)[0] for ids in prompts]


def test_an_answer_is_a_prefix_for_what_follows_it(llm: LLM) -> None:
    long = SamplingParams(max_tokens=30, temperature=0.7, seed=1, ignore_eos=True)
    (turn,) = llm.generate([prompt(240, 42)], long)
    ids = prompt(240, 42) + turn.token_ids + prompt(9, 43)
    before = llm.engine.counters.prefix_hit_tokens
    (followed,) = llm.generate([ids], long)
    assert llm.engine.counters.prefix_hit_tokens - before == 256
    llm.engine.forget_prefixes()
    assert llm.generate([ids], long)[0] == followed


def test_a_preempted_request_gives_the_same_tokens(llm: LLM, folder: Path) -> None:
    """Two requests of two pages each in the end, on three pages: the later goes in the middle of its answer."""
    small = LLM(folder, progress=False, num_pages=3, max_running=2, chunk_tokens=300)
    prompts = [prompt(246, 51), prompt(246, 52)]
    params = [SamplingParams(max_tokens=24, temperature=1.0, seed=i, ignore_eos=True, logprobs=1) for i in (1, 2)]
    together = small.generate(prompts, params)
    assert small.engine.counters.preemptions == 1 and small.engine.counters.recomputed_tokens >= 250
    small.engine.check()
    assert together == [llm.generate([p], own)[0] for p, own in zip(prompts, params, strict=True)]


def test_a_stream_aborted_from_outside_says_so(llm: LLM) -> None:
    stream = llm.stream(prompt(20), GREEDY)
    next(stream)
    (request,) = llm._pending
    llm.engine.abort(request)
    assert [delta.finish_reason for delta in stream] == ["abort"]


def test_end_token_and_stop_string(llm: LLM) -> None:
    sampled = SamplingParams(max_tokens=30, temperature=1.0, seed=8, ignore_eos=True)
    (free,) = llm.generate(["text"], sampled)
    stop = next(
        free.text[i : i + 2] for i in range(5, 25) if "\N{REPLACEMENT CHARACTER}" not in free.text[i : i + 2]
    )
    (stopped,) = llm.generate(["text"], SamplingParams(30, 1.0, seed=8, ignore_eos=True, stop=stop))
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert "".join(
        d.text for d in llm.stream("text", SamplingParams(30, 1.0, seed=8, stop=(stop,), ignore_eos=True))
    ) == (stopped.text)

    end = free.token_ids[12]
    engine, own = llm.engine, llm.engine.eos_ids
    engine.eos_ids = frozenset([end])
    try:
        (ended,) = llm.generate(["text"], SamplingParams(30, 1.0, seed=8))
        assert (
            ended.finish_reason == "stop"
            and ended.token_ids == free.token_ids[: free.token_ids.index(end) + 1]
        )
        assert free.text.startswith(ended.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        (ignored,) = llm.generate(["text"], sampled)
        assert ignored == free
    finally:
        engine.eos_ids = own


def test_logprobs(llm: LLM) -> None:
    (done,) = llm.generate([prompt(9)], SamplingParams(max_tokens=3, ignore_eos=True, logprobs=2))
    assert done.logprobs is not None
    reference = llm.logits(prompt(9) + done.token_ids[:2]).double().log_softmax(-1)[8:]
    for row, token, found in zip(reference, done.token_ids, done.logprobs, strict=True):
        assert set(found) == set(row.topk(2).indices.tolist()) and token in found
        assert found == pytest.approx({i: float(row[i]) for i in found}, abs=1e-3)
    assert llm.generate([prompt(9)], GREEDY)[0].logprobs is None


def test_begin_token_is_added_once(llm: LLM) -> None:
    assert llm.encode("a") == llm.encode("<begin>a") == [0, *llm.tokenizer.encode("a")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "prompt 1: the prompt is empty"),
        ("", "prompt 1: the prompt is empty"),
        ([5, 264], "token id 264 at place 1 of the prompt, expected 0 to 263"),
        ([-1], "token id -1 at place 0"),
        ([5, "x"], "token id 'x' at place 1"),
        ([5] * 2048, "2048 tokens, the model's context is 2048"),
        (
            [5] * 1530,
            r"1530 prompt tokens \+ max_tokens 8 need 7 pages of 256 tokens, the cache has 6.*num_pages",
        ),
    ],
)
def test_a_bad_prompt_is_named_and_nothing_runs(llm: LLM, bad: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate([prompt(4), bad], GREEDY)  # type: ignore[list-item]
    with pytest.raises(RequestError):
        llm.stream(bad, GREEDY)  # type: ignore[arg-type]


def test_misuse_is_refused(llm: LLM, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"write \[prompt\]"):
        llm.generate("text")
    with pytest.raises(ValueError, match="1 sampling params for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(RequestError, match="params is a dict"):
        llm.stream("a", {"max_tokens": 3})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"chunks \[3, 3\] sum to 6, expected .* 4"):
        llm.logits(prompt(4), [3, 3])
    with pytest.raises(RequestError, match="2049 tokens, the model's context is 2048"):
        llm.logits(prompt(2049))
    with pytest.raises(RequestError, match="2000 tokens: 8 pages wanted, 6 of 6 are free"):
        llm.logits(prompt(2000))
    for option in (
        {"max_running": 0},
        {"num_pages": 0},
        {"chunk_tokens": 31},
        {"window_pages": 1},
        {"impl": "cuda"},
        {"numerics": "x"},
    ):
        with pytest.raises(ValueError, match=str(next(iter(option.values())))):
            LLM(folder, progress=False, **option)  # type: ignore[arg-type]


def test_context_end_and_missing_tokenizer(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.glob("*.safetensors*"):
        (bare / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 300}
    (bare / "config.json").write_text(json.dumps(config))
    llm = LLM(bare, progress=False, numerics="exact", chunk_tokens=2048)
    (done,) = llm.generate([prompt(297)], SamplingParams(max_tokens=50, ignore_eos=True))
    assert (len(done.token_ids), done.finish_reason, done.text) == (3, "length", "")
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        llm.generate(["text"])
    with pytest.raises(RequestError, match=r"stop is \('a',\), .*no tokenizer"):
        llm.generate([prompt(5)], SamplingParams(stop=("a",)))


def test_every_op_is_described(llm: LLM) -> None:
    rows = llm.describe()
    assert {op for op, _, _ in rows} >= {"linear", "sparse_mla", "moe", "sampling"}
    assert all(implementation == "reference" and why for _, implementation, why in rows)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"max_running": 0}, "max_running is 0, expected at least 1"),
        ({"chunk_tokens": 31}, "chunk_tokens is 31, expected at least 32: in a step"),
        ({"num_pages": 0}, "number of pages is 0, expected at least 1"),
        ({"window_pages": 1}, "window_pages is 1, expected at least 2"),
        ({"mem_fraction": 0.5, "chunk_tokens": 31, "device": "cuda"}, "chunk_tokens is 31, expected at least 32"),
    ],
)
def test_sizes_are_refused_before_any_weight_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, object], said: str
) -> None:
    monkeypatch.setattr("wellhead.engine.llm.load_with_runner", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=said):
        LLM(folder, progress=False, **sizes)  # type: ignore[arg-type]
