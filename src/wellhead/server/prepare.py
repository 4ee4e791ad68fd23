"""From a checked body to engine requests: the prompt's ids, how tokens are chosen, what each choice is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wellhead.engine.adjust import Adjust, biased, in_turn, penalised
from wellhead.engine.llm import LLM
from wellhead.engine.request import Request, RequestError
from wellhead.engine.sampling_params import SamplingParams
from wellhead.server import prompt, protocol
from wellhead.server.errors import bad, shown
from wellhead.server.grammar import Grammars

COLDEST = 1e-6  # temperatures below draw as 0 does
MOST_PROMPT_COPIES = 1 << 22  # tokens that the prompts of one body's choices may have together
MOST_LOGPROBS = 1 << 20  # entries in one answer, each 70 to 150 bytes of JSON beside 60 in the engine
_SEEDS = 2**63


@dataclass(frozen=True)
class Prepared:
    """Engine requests, choice by choice; prompt_tokens counts a prompt once however many choices it has."""

    requests: list[Request]
    prompt_tokens: int
    thinking: bool = False


class Preparer:
    """All of it works in any thread."""

    def __init__(self, llm: LLM, grammars: Grammars | None, thinking: bool):
        self._llm, self._grammars, self._thinking = llm, grammars, thinking

    def chat(self, body: protocol.Chat) -> Prepared:
        thinking, effort = prompt.mode(body, self._thinking)
        ids = self._text(prompt.of_chat(body, thinking, effort), "messages")
        asked = body.max_completion_tokens or body.max_tokens
        named = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        top = max(1, body.top_logprobs or 0) if body.logprobs else 0
        matcher = self._held_to(body)
        if matcher is not None and body.ignore_eos:
            raise bad("ignore_eos", "ignore_eos: an answer held to a grammar ends where the grammar does; remove it")

        def constraint() -> Adjust | None:
            return None if matcher is None or self._grammars is None else self._grammars.constraint(matcher, thinking)

        requests = self._requests(body, [ids], "messages", asked, named, None, top, constraint)
        return Prepared(requests, len(ids), thinking)

    def completion(self, body: protocol.Completion) -> Prepared:
        each = [self._text(given, "prompt") if isinstance(given, str) else given for given in body.prompts]
        top = 0 if body.logprobs is None else max(1, body.logprobs)
        requests = self._requests(body, each, "prompt", body.max_tokens, "max_tokens", 16, top, lambda: None)
        return Prepared(requests, sum(map(len, each)))

    def tokens(self, body: protocol.Tokenize) -> list[int]:
        """The ids that a prompt, or a chat, would be."""
        if body.prompt is not None:
            return self._text(body.prompt, "prompt", begin=body.add_special_tokens)
        return self._text(prompt.of_tokenize(body, self._thinking), "messages")

    def _requests(
        self, body: protocol.Sampling, prompts: Sequence[Sequence[int]], field: str, asked: int | None, named: str,
        usual: int | None, top_logprobs: int, constraint: Any,
    ) -> list[Request]:  # fmt: skip
        n = body.n or 1
        if (copies := n * sum(map(len, prompts))) > MOST_PROMPT_COPIES:
            raise bad("n", f"n: the choices' prompts have {copies} tokens together, at most {MOST_PROMPT_COPIES}")
        usual = _few_logprobs(n * len(prompts), top_logprobs, asked, named, usual)
        found = []
        for place, ids in enumerate(prompts):
            own = field if len(prompts) == 1 else f"{field}.{place}"
            longest = self._longest(len(ids), own, asked, named, usual)
            for choice in range(n):
                params = self._params(body, longest, top_logprobs, place * n + choice)
                adjust = self._adjust(body, constraint())
                try:
                    found.append(self._llm.engine.make_request(ids, params, adjust))
                except RequestError as error:
                    raise bad(own, f"{own}: {error}") from None
        return found

    def _longest(self, length: int, field: str, asked: int | None, named: str, usual: int | None) -> int:
        """Tokens to generate at most."""
        engine = self._llm.engine
        most = min(engine.context_length, engine.pool_tokens + 1)
        if length >= most:
            raise bad(
                field, f"{field} has {length} tokens, this server takes {most - 1} at most; shorten it",
                "context_length_exceeded",
            )  # fmt: skip
        if asked is not None and length + asked > most:
            raise bad(
                named, f"{named} is {asked} and {field} has {length} tokens, together this server takes {most} at "
                f"most; {named} can be {most - length}", "context_length_exceeded",
            )  # fmt: skip
        return asked or min(usual or most, most - length)

    def _params(self, body: protocol.Sampling, longest: int, top_logprobs: int, place: int) -> SamplingParams:
        temperature = 1.0 if body.temperature is None else body.temperature
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        return SamplingParams(
            max_tokens=longest,
            temperature=temperature if temperature >= COLDEST else 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(0, body.top_k or 0),
            seed=None if body.seed is None else (body.seed + place) % _SEEDS,
            stop=stop,
            ignore_eos=bool(body.ignore_eos),
            logprobs=top_logprobs,
        )

    def _adjust(self, body: protocol.Sampling, constraint: Adjust | None) -> Adjust | None:
        steps: list[Adjust] = []
        if body.logit_bias:
            steps.append(biased({self._token_of(key): value for key, value in body.logit_bias.items()}))
        if body.presence_penalty or body.frequency_penalty:
            steps.append(penalised(body.presence_penalty or 0.0, body.frequency_penalty or 0.0))
        if constraint is not None:
            steps.append(constraint)
        return in_turn(steps)

    def _token_of(self, key: str) -> int:
        vocab = self._llm.config.vocab_size
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab):
            raise bad("logit_bias", f"logit_bias: {shown(key)} is no token id, expected '0' to '{vocab - 1}'")
        return int(key)

    def _held_to(self, body: protocol.Chat) -> Any:
        """The grammar that the answer is held to, None for none."""
        choice, format_ = body.tool_choice, body.response_format
        forced = choice == "required" or isinstance(choice, protocol.ToolChoice)
        plain = format_ is None or isinstance(format_, protocol.TextFormat)
        if not forced and plain:
            return None
        if self._grammars is None:
            raise bad("response_format", "this model has no tokenizer, answers cannot be held to a grammar")
        if forced and not plain:
            raise bad("response_format", "response_format contradicts a tool_choice that asks for a call; give one")
        if not forced:
            return self._grammars.json(*prompt.schema(format_))
        functions = prompt.functions(body.tools)
        if isinstance(choice, protocol.ToolChoice):
            name = choice.function.name
            functions = [function for function in functions if function["name"] == name]
            if not functions:
                raise bad("tool_choice.function.name", f"tool_choice names {shown(name)}, which is none of the tools")
        return self._grammars.calls(
            functions, isinstance(choice, protocol.ToolChoice) or body.parallel_tool_calls is False
        )

    def _text(self, text: str, field: str, begin: bool = True) -> list[int]:
        try:
            return self._llm.encode(text) if begin else self._llm.tokenizer.encode(text)
        except (ValueError, RequestError) as error:
            raise bad(field, f"{field}: {str(error)[:300]}") from None


def _few_logprobs(choices: int, top: int, asked: int | None, named: str, usual: int | None) -> int | None:
    """`usual`, or fewer tokens where the log-probabilities would be too many; a 400 where these were asked for."""
    if not top:
        return usual
    most = MOST_LOGPROBS // (choices * (top + 1))  # the chosen token is one more
    if asked is not None and asked > most:
        raise bad(
            named, f"{named} is {asked}: {choices} choices with {top + 1} log-probabilities a token, at most "
            f"{MOST_LOGPROBS} fit an answer; {named} can be {most}, more with fewer choices or log-probabilities",
        )  # fmt: skip
    return most if usual is None else min(usual, most)
