"""The door: a model by name, prompts in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from wellhead.dispatch.choose import AUTO
from wellhead.engine.books import make_books
from wellhead.engine.core import Engine
from wellhead.engine.interrupts import interrupts_wait
from wellhead.engine.loading import load_with_runner, pages_within
from wellhead.engine.output import Delta
from wellhead.engine.parallel import LeadingRunner
from wellhead.engine.request import FinishReason, Request, RequestError
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.speculative import MOST_TOKENS
from wellhead.engine.story import Phase, untold
from wellhead.model.checkpoint import open_checkpoint, resolve_model
from wellhead.model.config import ModelConfig
from wellhead.model.layers_attention import Ablation
from wellhead.model.numerics import Numerics
from wellhead.model.parallel import ALONE, WHOLE, Group
from wellhead.model.reach import CHUNK_TOKENS
from wellhead.model.split import Split
from wellhead.text.tokenizer import Tokenizer

__all__ = ["LLM", "Completion", "Delta", "RequestError", "SamplingParams"]

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Completion:
    """A finished request. `token_ids` includes the end token, `text` does not; `logprobs` is per generated
    token the natural-log probability of the likeliest tokens and the chosen one, None when not asked for.
    Of `drafted_tokens` guesses that were checked, in `draft_steps` steps, `accepted_tokens` were right.
    """

    prompt_tokens: int
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[dict[int, float]] | None
    drafted_tokens: int = field(default=0, compare=False)
    accepted_tokens: int = field(default=0, compare=False)
    draft_steps: int = field(default=0, compare=False)


class LLM:
    """A model ready to generate.

    model: a checkpoint folder, a Hugging Face id, or None for the small one in this package. numerics:
    "checkpoint" (bf16, quantised as the checkpoint is meant to be served) or "exact" (fp32, nothing rounded);
    index_keys "fp8" or "fp4" and kv_dtype "uint8" or "float8_e4m3fn" only matter to the former. At most
    max_running requests run together, chunk_tokens tokens a step; num_pages logical pages of 256 tokens hold their
    caches (None: as many as fit 2 GiB), window_pages the window's (None: as many). prefix_caching keeps the pages of
    ended requests, while nobody else wants them, for prompts that begin alike. device "cuda" computes in kernels, "cpu"
    in torch. impl names the implementation of all ops, or of some as {op: name}; the others take the first that fits.
    captured False launches a device's decode steps one by one, largest_graph only those of more requests than that.
    speculative_tokens 1 to 3: the model's MTP layer guesses that many tokens ahead and one step checks them; greedy
    answers stay what they are, sampled ones keep their distribution, on a device also their draws, which are not those
    of the same seed on the CPU. In a group of several ranks this is rank 0, and the others run
    `engine.parallel.follow` over the same model. A folder without tokenizer.json takes prompts as ids only, gives empty
    text and refuses stop strings. context_length bounds a request's tokens below the model's own limit; from
    mem_fraction, the part of a card's memory to take, follow num_pages and window_pages. overlap: on a device a step is
    launched before the tokens of the one in front are read, where all of them are chosen there. `phase` is told what is
    being done meanwhile.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        progress: bool = True,
        numerics: str = "checkpoint",
        index_keys: str = "fp8",
        max_running: int = 32,
        chunk_tokens: int = CHUNK_TOKENS,
        num_pages: int | None = None,
        window_pages: int | None = None,
        prefix_caching: bool = True,
        kv_dtype: str = "uint8",
        impl: str | Mapping[str, str] = AUTO,
        captured: bool = True,
        ablation: Ablation | str = Ablation.NONE,
        device: str = "cpu",
        split: Split = WHOLE,
        group: Group = ALONE,
        speculative_tokens: int = 0,
        context_length: int | None = None,
        largest_graph: int | None = None,
        mem_fraction: float | None = None,
        overlap: bool = True,
        phase: Phase = untold,
    ):
        precision = Numerics.named(numerics, index_keys, kv_dtype)
        tokenizer = None
        with phase("checking the checkpoint"):
            checkpoint = open_checkpoint(resolve_model(model))
            if (checkpoint.folder / "tokenizer.json").is_file():
                tokenizer = Tokenizer.from_folder(checkpoint.folder)
            if group.rank:
                raise ValueError(f"this is rank {group.rank}; requests are rank 0's, the others follow it")
            _check_speculative(speculative_tokens, checkpoint.config)
            _check_context(context_length, checkpoint.config)
            books = partial(
                make_books, checkpoint.config, precision, max_running=max_running, chunk_tokens=chunk_tokens,
                prefix_caching=prefix_caching, speculative_tokens=speculative_tokens,
                context_length=context_length or checkpoint.config.max_position_embeddings,
            )  # fmt: skip
            books(num_pages=num_pages, window_pages=window_pages)  # bad sizes are refused before memory is taken
            if mem_fraction is not None:
                num_pages, planned_window = pages_within(
                    mem_fraction, checkpoint.config, precision, split, device, num_pages=num_pages, slots=max_running,
                    chunk_tokens=chunk_tokens, context_length=context_length, speculative_tokens=speculative_tokens,
                    impl=impl, captured=captured, largest_graph=largest_graph,
                )  # fmt: skip
                window_pages = planned_window if window_pages is None else window_pages
                books(num_pages=num_pages, window_pages=window_pages)
        loaded, make_runner = load_with_runner(
            checkpoint, precision, device, chunk_tokens=chunk_tokens, impl=impl, captured=captured,
            ablation=ablation, progress=progress, split=split, group=group, speculative_tokens=speculative_tokens,
            context_length=context_length, largest_graph=largest_graph, phase=phase,
        )  # fmt: skip
        if group.world > 1:
            make_runner = partial(LeadingRunner, group, make_runner)
        self._group = group
        self._folder, self._model, self._tokenizer = checkpoint.folder, loaded, tokenizer
        self._pending: dict[Request, list[Delta]] = {}
        eos_ids = tokenizer.eos_ids if tokenizer else frozenset([checkpoint.config.eos_token_id])
        self.engine = Engine(
            loaded, tokenizer, eos_ids, max_running=max_running, chunk_tokens=chunk_tokens, num_pages=num_pages,
            window_pages=window_pages, prefix_caching=prefix_caching, speculative_tokens=speculative_tokens,
            context_length=context_length, overlap=overlap, make_runner=make_runner,
        )  # fmt: skip

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; ValueError when its folder has none."""
        if self._tokenizer is None:
            raise ValueError(f"{self._folder}: no tokenizer.json; copy it there, or give prompts as token ids")
        return self._tokenizer

    def describe(self) -> list[tuple[str, str, str]]:
        """(operation, implementation, why) of every operation, and of the sums over several ranks."""
        return [*self._model.describe(), *([] if self.sums is None else [("sums over ranks", *self.sums)])]

    @property
    def sums(self) -> tuple[str, str] | None:
        """How several ranks add tensors, and why so."""
        return None if self._group.world == 1 else self._group.sums

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        on_finished: Callable[[], object] = lambda: None,
    ) -> list[Completion]:
        """Complete all prompts together; results in their order. `on_finished` is called when one is complete.

        A str is encoded as it is, with the begin token in front unless it is there. `params` for all, or one
        each. RequestError, naming the prompt, before anything runs.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts is a str, expected a list of prompts; write [prompt]")
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(each)} sampling params for {len(prompts)} prompts, expected one, or one each")
        requests: list[Request] = []
        for number, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            try:
                requests.append(self._request(prompt, own))
            except RequestError as error:
                raise RequestError(f"prompt {number}: {error}") from None
        texts = {request: "" for request in requests}
        try:
            for request in requests:
                self.engine.submit(request)
            while any(request.finish_reason is None for request in requests):
                for request, delta in self._step():
                    if request in texts:
                        texts[request] += delta.text
                        if delta.finish_reason is not None:
                            on_finished()
        finally:
            # an interrupt must not leave requests behind
            for request in requests:
                self.engine.abort(request)
        for request in requests:
            if request.error is not None:
                raise request.error
        return [_completion(request, texts[request]) for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Deltas as they come, the last with its finish reason; closing the iterator aborts the request."""
        request = self._request(prompt, params or SamplingParams())
        return self._stream(request)

    def logits(self, token_ids: Sequence[int], chunks: Sequence[int] | None = None) -> torch.Tensor:
        """Teacher-forced fp32 logits [T, vocab] of one sequence, computed in chunks of the given sizes."""
        with interrupts_wait():
            return self.engine.logits(token_ids, chunks)

    def _stream(self, request: Request) -> Iterator[Delta]:
        self._pending[request] = []
        self.engine.submit(request)
        try:
            while True:
                queue = self._pending[request]
                while queue and request.error is None:
                    delta = queue.pop(0)
                    yield delta
                    if delta.finish_reason is not None:
                        return
                if request.error is not None:
                    raise request.error
                if request.finish_reason is not None:  # aborted from outside
                    yield Delta("", [], request.finish_reason)
                    return
                self._step()
        finally:
            del self._pending[request]
            self.engine.abort(request)

    def _step(self) -> list[tuple[Request, Delta]]:
        """One engine step; deltas of open streams wait for their readers, whoever took the step."""
        with interrupts_wait():
            deltas = self.engine.step()
            for request, delta in deltas:
                if request in self._pending:
                    self._pending[request].append(delta)
        return deltas

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params is a {type(params).__name__}, expected SamplingParams")
        return self.engine.make_request(self.encode(prompt) if isinstance(prompt, str) else prompt, params)

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, the begin token in front; RequestError for an empty one."""
        if not text:
            raise RequestError("the prompt is empty, expected some text")
        ids = self.tokenizer.encode(text)
        bos = self.tokenizer.bos_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _check_speculative(tokens: int, config: ModelConfig) -> None:
    """Raise unless that many tokens can be guessed."""
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 <= tokens <= MOST_TOKENS:
        raise ValueError(f"speculative_tokens is {tokens!r}, expected 0 to {MOST_TOKENS}")
    if not tokens:
        return
    ratios = config.compress_ratios[config.num_hidden_layers :]
    if config.num_nextn_predict_layers != 1 or ratios != (0,):
        raise ValueError(
            f"speculative_tokens is {tokens}, but the model has {config.num_nextn_predict_layers} MTP layers with "
            f"compress_ratios {list(ratios)}; expected one, of ratio 0"
        )


def _check_context(context_length: int | None, config: ModelConfig) -> None:
    most = config.max_position_embeddings
    if context_length is not None and not 2 <= context_length <= most:
        raise ValueError(f"context_length is {context_length}, expected 2 to the model's {most}")


def _completion(request: Request, text: str) -> Completion:
    assert request.finish_reason is not None
    return Completion(
        prompt_tokens=len(request.prompt),
        token_ids=list(request.output),
        text=text,
        finish_reason=request.finish_reason,
        logprobs=list(request.logprobs) if request.params.logprobs else None,
        drafted_tokens=request.drafted,
        accepted_tokens=request.accepted,
        draft_steps=request.draft_steps,
    )
