"""The loop: submit, then schedule, run, postprocess, collect, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wellhead.engine.adjust import Adjust
from wellhead.engine.books import make_books
from wellhead.engine.choice import Launched
from wellhead.engine.output import Delta, TextOutput
from wellhead.engine.request import FinishReason, Request, RequestError
from wellhead.engine.runner import MakeRunner, Runner
from wellhead.engine.sampling_params import SamplingParams
from wellhead.engine.scheduler import Counters
from wellhead.model.batch import Chunk
from wellhead.model.load import ServedModel
from wellhead.model.reach import CHUNK_TOKENS
from wellhead.model.state import PAGE_TOKENS, pages_for
from wellhead.text.tokenizer import Tokenizer


class Engine:
    """Runs requests together; one thread. A request that is refused or aborted leaves the others as they
    were.
    """

    def __init__(
        self,
        model: ServedModel,
        tokenizer: Tokenizer | None,
        eos_ids: frozenset[int],
        *,
        max_running: int = 32,
        chunk_tokens: int = CHUNK_TOKENS,
        num_pages: int | None = None,
        window_pages: int | None = None,
        prefix_caching: bool = True,
        speculative_tokens: int = 0,
        context_length: int | None = None,
        overlap: bool = True,
        make_runner: MakeRunner = Runner,
    ):
        self.max_running = max_running
        self.context_length = context_length or model.config.max_position_embeddings
        self._model, self._tokenizer, self.eos_ids = model, tokenizer, eos_ids
        self._chunk_tokens = chunk_tokens
        self._scheduler = make_books(
            model.config, model.numerics, max_running=max_running, chunk_tokens=chunk_tokens, num_pages=num_pages,
            window_pages=window_pages, prefix_caching=prefix_caching, speculative_tokens=speculative_tokens,
            context_length=self.context_length,
        )  # fmt: skip
        self._memory = self._scheduler.memory
        self._runner = make_runner(model, self._memory.pages.total, max_running, self._memory.window_pages.total)
        self._texts: dict[Request, TextOutput] = {}
        self._overlap, self._undisturbed = overlap, True
        self._ahead: Launched | None = None  # the next step, where it is under way

    @property
    def busy(self) -> bool:
        return self._scheduler.busy

    @property
    def free_pages(self) -> int:
        """Pages that no request holds; the prefix cache may have some of them until they are wanted."""
        return self._memory.available

    @property
    def counters(self) -> Counters:
        return self._scheduler.counters

    @property
    def graph_misses(self) -> int | None:
        """Steps whose decodes ran launch by launch; None where there are no graphs."""
        return self._runner.graph_misses

    @property
    def graph_sizes(self) -> Sequence[int]:
        """Batch sizes with a captured decode step."""
        return self._runner.graph_sizes

    @property
    def pool_pages(self) -> int:
        return self._memory.pages.total

    @property
    def pool_tokens(self) -> int:
        """Tokens that the caches hold, of all requests together."""
        return self.pool_pages * PAGE_TOKENS

    def make_request(self, prompt: Sequence[int], params: SamplingParams, adjust: Adjust | None = None) -> Request:
        """A checked request, not yet queued. RequestError names what is wrong with it and what would help."""
        context = self.context_length
        ids = self.check_ids(prompt)
        if len(ids) >= context:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, the model's context is {context} and needs room for one "
                "more; shorten the prompt"
            )
        if params.stop and self._tokenizer is None:
            raise RequestError(f"stop is {params.stop!r}, but the model has no tokenizer; leave it out")
        longest = min(params.max_tokens, context - len(ids))
        request = Request(ids, params, longest, _generator(params.seed), adjust)
        needed, total = pages_for(request.cached_tokens), self._memory.pages.total
        if needed > total:
            raise RequestError(
                f"{len(ids)} prompt tokens + max_tokens {request.max_tokens} need {needed} pages of "
                f"{PAGE_TOKENS} tokens, the cache has {total}; shorten the prompt, lower max_tokens or "
                "raise num_pages"
            )
        return request

    def check_ids(self, prompt: Sequence[int]) -> list[int]:
        """The ids as a list; RequestError for an empty prompt or an id outside the vocabulary."""
        ids = list(prompt)
        if not ids:
            raise RequestError("the prompt is empty, expected at least one token")
        vocab = self._model.config.vocab_size
        for index, token in enumerate(ids):
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab:
                raise RequestError(
                    f"token id {token!r} at place {index} of the prompt, expected 0 to {vocab - 1}"
                )
        return ids

    def submit(self, request: Request) -> None:
        """Queue a request from `make_request`."""
        self._texts[request] = TextOutput(self._tokenizer, request.params.stop)
        self._scheduler.add(request)

    def abort(self, request: Request) -> None:
        """End a request and free what it holds; a finished or unknown one is left alone."""
        if self._texts.pop(request, None) is not None:
            self._scheduler.finish(request, "abort")

    def step(self) -> list[tuple[Request, Delta]]:
        """Run one step; what every request that got a token gained by it. A request that failed by itself ends with
        "error" and leaves its exception in `error`; the others have their step. A step that fails as a whole ends all
        requests in it so, and raises; who was not in it goes on with the next. One that ended nobody could not even be
        scheduled, and nobody may go on.

        Where every token is chosen on the card, the step behind this one is launched before this one's tokens are read:
        meanwhile the host has its time. Who ends with this one was in it for nothing.

        When nothing is left to run, the pools must be whole; else IntegrityError names what is lost.
        """
        launched, self._ahead = self._ahead, None
        if launched is not None and all(item.request.finish_reason is not None for item in launched.work):
            launched = None  # nobody wants it any more
        work = self._scheduler.schedule() if launched is None else launched.work
        try:
            launched = launched or self._runner.launch(work)
            self._ahead = self._launch_ahead(launched)
            found = self._runner.finish(launched)
            self._scheduler.advance(work, {request: len(tokens) - 1 for request, tokens in found.items()})
            deltas = [(request, self._collect(request, tokens)) for request, tokens in found.items()]
            failed = [item.request for item in work if item.request.error and item.request.finish_reason is None]
            deltas += [(request, self._fail(request)) for request in failed]
        except Exception as error:  # tails restored and numbers drawn are lost with it
            self._ahead = None
            for item in work:
                if item.request.finish_reason is None:
                    item.request.error = error
                    self._fail(item.request)
            raise
        if not (self.busy or self._memory.whole):
            self.check()
        return deltas

    def _launch_ahead(self, last: Launched) -> Launched | None:
        """The step behind the one launched last, under way; None where it has to wait for it."""
        undisturbed, self._undisturbed = self._undisturbed, True
        if not (self._overlap and self._runner.overlaps and undisturbed and last.leads):
            return None
        ahead = self._scheduler.schedule_ahead(last.work, self._runner.carried)
        return self._runner.launch(ahead) if ahead else None

    def check(self) -> None:
        """IntegrityError, naming the page, unless every page and state slot is accounted for."""
        self._scheduler.check()

    def forget_prefixes(self) -> None:
        """Empty the prefix cache of what no running request uses."""
        self._memory.prefix.clear()

    def logits(self, token_ids: Sequence[int], chunks: Sequence[int] | None = None) -> torch.Tensor:
        """fp32 [T, vocab] of one sequence computed in the given chunk sizes, on pages that nobody uses."""
        ids = self.check_ids(token_ids)
        if len(ids) > self.context_length:
            raise RequestError(f"{len(ids)} tokens, the model's context is {self.context_length}; give fewer")
        sizes = list(chunks or ())
        if chunks is not None and (sum(sizes) != len(ids) or any(n < 1 for n in sizes)):
            raise ValueError(f"chunks {sizes} sum to {sum(sizes)}, expected positive sizes that sum to {len(ids)}")
        memory, parts = self._memory, []
        self._undisturbed = False  # a runner's buffers are its last computation's
        request = Request(ids, SamplingParams(), 1, torch.Generator())
        if not memory.slots.free:
            raise RequestError(f"{len(ids)} tokens: all state slots are in use; wait for other requests")
        try:
            (request.state_slot,) = memory.slots.allocate(1)
            while request.pending:
                wanted = sizes.pop(0) if chunks else min(self._chunk_tokens, request.pending)
                n = memory.fitting(request, wanted)
                if not n or (chunks and n < wanted):
                    free, window = self.free_pages + len(request.pages), memory.available_window
                    raise RequestError(
                        f"{len(ids)} tokens: {pages_for(len(ids))} pages wanted, {free} of {memory.pages.total} are "
                        f"free, and {window} window pages for {wanted} tokens more; wait for other requests, give "
                        "smaller chunks or raise num_pages"
                    )
                memory.grow(request, n)
                tokens = request.next_tokens(n)
                chunk = Chunk(tokens, request.computed, request.pages, request.state_slot, "all", request.window_pages)
                parts.append(self._runner.compute([chunk]).read(range(n)))
                memory.advance(request, n, saved=False)
            return torch.cat(parts)
        finally:
            memory.release(request)

    def _collect(self, request: Request, tokens: list[int]) -> Delta:
        """What the tokens add to a request, up to the one that ends it."""
        before, text = len(request.output), ""
        for token in tokens:
            more, reason = self._push(request, token)
            text += more
            if reason is not None:
                del self._texts[request], request.logprobs[len(request.output) :]
                self._scheduler.finish(request, reason)
                break
        behind = len(tokens) - 1 - (len(request.output) - before)
        if behind > 0:
            self._scheduler.uncount(request, behind)
        return Delta(text, request.output[before:], reason)

    def _fail(self, request: Request) -> Delta:
        self._texts.pop(request, None)
        self._scheduler.finish(request, "error")
        return Delta("", [], "error")

    def _push(self, request: Request, token: int) -> tuple[str, FinishReason | None]:
        """A request's next token: the text it makes certain, and whether the request ends with it."""
        request.output.append(token)
        out, text = self._texts[request], ""
        ended = token in self.eos_ids and not request.params.ignore_eos  # the end token has no text
        if not ended:
            text, ended = out.push(token)
        if not ended and len(request.output) < request.max_tokens:
            return text, None
        rest, stopped = out.finish()
        return text + rest, "stop" if ended or stopped else "length"


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
