r"""The text of an answer taken apart while it streams: reasoning, content and tool calls.

The grammar, with R the reasoning (thinking mode only), C the content, E the end token; tag names carry the
DSML token, left out here::

    answer    = [R "</think>"] C ["\n\n<tool_calls>\n" call "\n" ... "\n</tool_calls>"] [E]
    call      = '<invoke name="F">\n' parameter "\n" ... "\n</invoke>"
    parameter = '<parameter name="K" string="true|false">' V "</parameter>"

V is raw text for string="true" and JSON otherwise. The literals are in ``chat_markup``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NoReturn

from wellhead.text import chat_markup as markup
from wellhead.text.answer import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallBegin, ToolCallEnd
from wellhead.text.hold_back import MarkerSearch
from wellhead.text.tool_calls import to_json


class MalformedAnswer(ValueError):
    """The model's text does not follow the answer grammar; `events` are what the push that met it had made certain."""

    events: Sequence[Event] = ()


_CALLS = markup.BEFORE_CALLS + markup.CALLS_BEGIN
_TEXT_HEAD, _JSON_HEAD = '" string="true">', '" string="false">'
# A closing tag without its "<" would let a value swallow the calls after it.
_BROKEN_END = markup.PARAMETER_END.removeprefix("<")
# A call without parameters has an empty line, so one or two line ends.
_INVOKE_HEAD = re.compile(r'\s*name="(.*?)">\n\n?', re.DOTALL)

# Where the parser is, and the markers it looks for there.
_SEARCH = {
    state: MarkerSearch(markers)
    for state, markers in {
        "reasoning": (markup.THINK_END, _CALLS, markup.DSML, markup.EOS),
        "content": (_CALLS, markup.DSML, markup.EOS),
        "between calls": (markup.INVOKE_BEGIN, markup.CALLS_END, markup.EOS),
        "call": (markup.PARAMETER_BEGIN, markup.INVOKE_END, markup.EOS),
        "parameter": (_TEXT_HEAD, _JSON_HEAD, markup.PARAMETER_END, markup.EOS),
        "text value": (markup.PARAMETER_END, _BROKEN_END, markup.EOS),
        "JSON value": (markup.PARAMETER_END, _BROKEN_END, markup.EOS),
        "after parameter": (markup.PARAMETER_BEGIN, markup.INVOKE_END, markup.EOS),
        "after calls": (markup.EOS,),
        "end": (),
    }.items()
}


class StreamParser:
    """Takes an answer apart while it streams; the joined events do not depend on how the text was cut.

    Text that may still become markup is held back, and markup is never content. Raises MalformedAnswer once
    the text breaks the grammar. The spellings of the begin token and the thinking tags pass as content.
    """

    def __init__(self, thinking: bool):
        self._state = "reasoning" if thinking else "content"
        self._held = ""
        self._collected: list[str] = []
        self._cut_off = ""
        self._call = -1
        self._parameters: list[str] = []

    @property
    def unfinished(self) -> str | None:
        """What a cut-off answer stopped in the middle of, or None where it may well be whole."""
        if self._cut_off:
            return f"the tag {self._cut_off!r}"
        if self._state in ("content", "after calls", "end"):
            return None
        return "the reasoning" if self._state == "reasoning" else "the tool calls"

    @property
    def held(self) -> str:
        """Text that no event has told yet; after MalformedAnswer it begins where the grammar was broken."""
        return self._held

    def push(self, text: str) -> list[Event]:
        """Events made certain by more text."""
        events: list[Event] = []
        self._held += text
        begin = 0
        try:
            while True:
                position, marker = _SEARCH[self._state].first(self._held, begin)
                self._take(self._held[begin:position], events)
                begin = position
                if marker is None:
                    break
                self._leave(marker, "".join(self._collected), events)
                self._collected.clear()
                begin += len(marker)
        except MalformedAnswer as error:
            self._held, error.events = "".join(self._collected) + self._held[begin:], events
            raise
        self._held = self._held[begin:]
        return events

    def finish(self) -> list[Event]:
        """The text still held back, once no more is coming.

        Line ends and a lone "<" or "｜" are text; anything longer is a cut-off tag, which is left out and named by
        ``unfinished``. An answer cut off by a length limit is no error here.
        """
        events: list[Event] = []
        held, self._held = self._held, ""
        if self._state in ("reasoning", "content") and held.lstrip("\n") in ("", "<", markup.DSML[0]):
            self._take(held, events)
        else:
            self._cut_off = held
        return events

    def _take(self, text: str, events: list[Event]) -> None:
        """Text of the present state that is no marker."""
        if not text:
            return
        if self._state == "reasoning":
            events.append(ReasoningDelta(text))
        elif self._state == "content":
            events.append(ContentDelta(text))
        elif self._state == "text value":
            # The escapes of a JSON string stand for one character each, so pieces can be escaped one by one.
            events.append(ToolCallArguments(self._call, to_json(text)[1:-1]))
        elif self._state in ("after calls", "end"):
            self._fail(text, "nothing more" if self._state == "end" else f"{markup.EOS!r} or nothing")
        else:
            self._collected.append(text)

    def _leave(self, marker: str, text: str, events: list[Event]) -> None:
        """Go from the present state to the next one; ``marker`` was just read, behind the collected ``text``."""
        state = self._state
        if state == "content" and marker == _CALLS:
            self._state = "between calls"
        elif state in ("content", "after calls") and marker == markup.EOS:
            self._state = "end"
        elif state == "reasoning" and marker == markup.THINK_END:
            self._state = "content"
        elif state in ("reasoning", "content") or marker in (markup.EOS, _BROKEN_END):
            self._fail(marker, " or ".join(map(repr, _SEARCH[state].markers[: 2 if state == "call" else 1])))
        elif state == "between calls":
            self._expect_tag_rest(text)
            self._state = "call" if marker == markup.INVOKE_BEGIN else "after calls"
        elif state == "call":
            self._begin_call(text, events)
            self._go_on_in_call(marker, events)
        elif state == "parameter":
            self._begin_parameter(text, marker, events)
        elif state == "after parameter":
            self._expect_tag_rest(text)
            self._go_on_in_call(marker, events)
        else:
            if state == "JSON value":
                self._check_json(text)
            events.append(ToolCallArguments(self._call, '"' if state == "text value" else text))
            self._state = "after parameter"

    def _begin_call(self, head: str, events: list[Event]) -> None:
        match = _INVOKE_HEAD.fullmatch(head)
        if match is None:
            self._fail(head, "' name=\"...\"' and the end of the tag and the line")
        self._call += 1
        self._parameters.clear()
        events.append(ToolCallBegin(self._call, match[1]))

    def _go_on_in_call(self, marker: str, events: list[Event]) -> None:
        if marker == markup.PARAMETER_BEGIN:
            self._state = "parameter"
            return
        events.append(ToolCallArguments(self._call, "}" if self._parameters else "{}"))
        events.append(ToolCallEnd(self._call))
        self._state = "between calls"

    def _begin_parameter(self, head: str, marker: str, events: list[Event]) -> None:
        name = head.removeprefix(' name="')
        if name == head or marker == markup.PARAMETER_END:
            self._fail(head + marker, '\' name="..." string="true|false">\'')
        if name in self._parameters:
            self._fail(name, "each parameter name once in a call")
        opening = "{" if not self._parameters else ", "
        self._parameters.append(name)
        self._state = "text value" if marker == _TEXT_HEAD else "JSON value"
        quote = '"' if marker == _TEXT_HEAD else ""
        events.append(ToolCallArguments(self._call, f"{opening}{to_json(name)}: {quote}"))

    def _check_json(self, text: str) -> None:
        expected = f'the JSON value of parameter {self._parameters[-1]!r}, or string="true"'
        try:
            # Only the grammar matters; numbers stay text, so that none is too long.
            json.loads(text, parse_int=str, parse_constant=lambda constant: self._fail(constant, expected))
        except (json.JSONDecodeError, RecursionError):
            self._fail(text, expected)

    def _expect_tag_rest(self, text: str) -> None:
        if text != markup.TAG_REST:
            self._fail(text, repr(markup.TAG_REST))

    def _fail(self, found: str, expected: str) -> NoReturn:
        shown = found if len(found) <= 80 else found[:77] + "..."
        raise MalformedAnswer(
            f"malformed answer, {self._state}: found {shown!r}; expected {expected}; "
            "take the raw text of this answer, or generate it again"
        )
