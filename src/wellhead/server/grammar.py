"""Answers held to a grammar: JSON, JSON of a schema, or tool calls, as a mask over the logits.

llguidance does it: one wheel for every Python from 3.9 on, no dependencies of its own, bit masks in plain bytes, a
millisecond a token at most, bounds on what a hostile schema may cost. (xgrammar brings torch extensions and a
compiler stack, outlines-core compiles a schema to an automaton ahead of the first token.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from wellhead.engine.adjust import Adjust
from wellhead.server.errors import bad, shown
from wellhead.text import chat_markup as markup
from wellhead.text.tokenizer import Tokenizer

LONGEST_SCHEMA = 64 << 10  # characters of JSON
_PARAMETER_NAME = re.compile(r'[^"<>\n\\]{1,128}')


class Grammars:
    """Makes constraints over one tokenizer and `vocab` logits."""

    def __init__(self, tokenizer: Tokenizer, vocab: int):
        self._tokenizer, self._vocab = tokenizer, vocab
        backend = tokenizer.source.read_text(encoding="utf-8")
        self._tokens = LLTokenizer(backend, n_vocab=vocab, eos_token=sorted(tokenizer.eos_ids))

    def json(self, schema: Mapping[str, Any] | None, param: str) -> LLMatcher:
        """JSON of this schema, on one line; any object for None. 400 for a schema that is not supported."""
        return self._matcher(_json_grammar({"type": "object"} if schema is None else schema, param), param)

    def calls(self, functions: Sequence[Mapping[str, Any]], most_one: bool) -> LLMatcher:
        """At least one call of these functions in the model's own markup, and nothing else."""
        try:
            token = self._tokenizer.special(markup.DSML)
        except ValueError:
            raise bad("tool_choice", "this model's tokenizer has no token for tool calls; use 'auto'") from None
        return self._matcher(LLMatcher.grammar_from_lark(_calls_grammar(functions, token, most_one)), "tools")

    def constraint(self, matcher: LLMatcher, thinking: bool) -> Adjust:
        """Logits of tokens that the grammar does not allow become -inf; while thinking, only those that would end the
        answer before it began.
        """
        after = self._tokenizer.special(markup.THINK_END) if thinking else None
        return _Constraint(matcher.deep_copy(), self._vocab, sorted(self._tokenizer.eos_ids), after)

    def _matcher(self, grammar: str, param: str) -> LLMatcher:
        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some grammars turn out to allow nothing only now
        if matcher.is_error():
            reason = matcher.get_error().split("\n")[0].removesuffix("<state>")
            raise bad(param, f"{param}: this schema cannot be used: {shown(reason)}", "unsupported_schema")
        return matcher


class _Constraint:
    def __init__(self, matcher: LLMatcher, vocab: int, eos_ids: list[int], after: int | None):
        self._matcher, self._vocab, self._after = matcher, vocab, after
        self._eos = torch.tensor(eos_ids)
        self._seen = 0

    def __call__(self, row: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        if self._after is not None:
            if self._after not in output[self._seen :]:
                self._seen = len(output)
                return row.index_fill(0, self._eos, -torch.inf)
            self._seen = output.index(self._after, self._seen) + 1
            self._after = None
        new = list(output[self._seen :])
        self._seen = len(output)
        if new and not self._matcher.consume_tokens(new):
            raise RuntimeError(f"the answer left its grammar: {self._matcher.get_error()[:200]}")
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error() and not self._matcher.is_accepting():
            raise RuntimeError(f"the grammar has no next token: {self._matcher.get_error()[:200]}")
        allowed = np.unpackbits(mask, bitorder="little")[: self._vocab].astype(bool)
        return row.masked_fill(torch.from_numpy(~allowed), -torch.inf)


def _json_grammar(schema: Mapping[str, Any], param: str) -> str:
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise bad(param, f"{param}: nested too deeply", "unsupported_schema") from None
    if len(text) > LONGEST_SCHEMA:
        raise bad(param, f"{param}: {len(text)} characters of JSON, at most {LONGEST_SCHEMA} are possible")
    # without room for white space: a small model would fill it
    return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})


def _calls_grammar(functions: Sequence[Mapping[str, Any]], token: int, most_one: bool) -> str:
    """Lark; `token` is the markup's own word."""
    rules: list[str] = []
    names = [_function(number, function, rules) for number, function in enumerate(functions)]
    more = "" if most_one else f" ({_literal(chr(10))} call)*"
    start = [
        f"start: {_literal(markup.BEFORE_CALLS + markup.CALLS_BEGIN + markup.TAG_REST)} call{more} "
        f"{_literal(chr(10))} {_literal(markup.CALLS_END)}",  # apart: a lexer takes the longest it can begin
        f"call: {' | '.join(names)}",
        "text: TEXT " + _literal(markup.PARAMETER_END.removeprefix("</") + ">"),
        r"TEXT: /(.|\n)*<\//",
        f"dsml: <[{token}]>",
    ]
    return "\n".join([*start, *rules]) + "\n"


def _literal(text: str) -> str:
    """Lark strings, with the rule `dsml` where the markup's word is."""
    parts = (json.dumps(part, ensure_ascii=False) for part in text.split(markup.DSML))
    return " dsml ".join(parts)


def _function(number: int, function: Mapping[str, Any], rules: list[str]) -> str:
    """Adds the rules of one function's call; the first one's name."""
    schema = function.get("parameters") or {}
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise bad(f"tools.{number}.function.parameters", "expected `properties` an object and `required` a list")
    parts = []
    for place, (name, own) in enumerate(properties.items()):
        param = f"tools.{number}.function.parameters.properties"
        if not _PARAMETER_NAME.fullmatch(name) or not isinstance(own, dict | bool):
            raise bad(param, f"{param}: {shown(name)} is no name and schema that a call can carry")
        defs = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        rule = f"p{number}_{place}"
        rules.append(
            f"{rule}: {_parameter(name, own if isinstance(own, dict) else {}, defs, param)} {_literal(chr(10))}"
        )
        parts.append(rule if name in required else f"{rule}?")
    head = _literal(f'{markup.INVOKE_BEGIN} name="{function["name"]}"{markup.TAG_REST}')
    rules.append(f"f{number}: {head} {' '.join(parts)} {_literal(markup.INVOKE_END + '>')}")
    return f"f{number}"


def _parameter(name: str, schema: Mapping[str, Any], defs: Mapping[str, Any], param: str) -> str:
    """A parameter as text, where its schema is of strings, else as JSON."""
    opening = f'{markup.PARAMETER_BEGIN} name="{name}" string="'
    end = _literal(markup.PARAMETER_END + ">")
    values = schema.get("enum")
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        texts = " | ".join(_literal(value) for value in values)
        return f"{_literal(opening + 'true' + chr(34) + '>')} ({texts}) {end}"
    as_text = f"{_literal(opening + 'true' + chr(34) + '>')} text"
    if schema.get("type") == "string":
        return as_text
    text = json.dumps({**schema, **defs})
    if len(text) > LONGEST_SCHEMA:
        raise bad(param, f"{param}: {len(text)} characters of JSON, at most {LONGEST_SCHEMA} are possible")
    as_json = f"{_literal(opening + 'false' + chr(34) + '>')} %json {text} {end}"
    return as_json if schema else f"({as_text} | {as_json})"
