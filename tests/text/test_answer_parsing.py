"""Answers taken apart, whole and in pieces: the cuts never matter and markup never reaches the content."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from wellhead.text import (
    ContentDelta,
    Event,
    MalformedAnswer,
    ReasoningDelta,
    StreamParser,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    encode_messages,
)
from wellhead.text.tool_calls import ToolCall


@dataclass
class ParsedMessage:
    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


E = "<｜end▁of▁sentence｜>"
CALLS = """

<｜DSML｜tool_calls>
<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">Köln "<b>"
\\ 🙂</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">[3, {"x": 1.50}]</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="now">

</｜DSML｜invoke>
</｜DSML｜tool_calls>"""
PARSED_CALLS = [
    ToolCall("weather", r'{"city": "Köln \"<b>\"\n\\ 🙂", "days": [3, {"x": 1.50}]}'),
    ToolCall("now", "{}"),
]


def stream(pieces: Iterable[str], thinking: bool) -> tuple[list[Event], StreamParser]:
    parser = StreamParser(thinking)
    events = [event for piece in pieces for event in parser.push(piece)]
    return events + parser.finish(), parser


def parse(text: str, thinking: bool) -> ParsedMessage:
    """A whole answer taken apart."""
    events, parser = stream([text], thinking)
    assert parser.unfinished is None
    message = ParsedMessage()
    for event in events:
        if isinstance(event, ReasoningDelta):
            message.reasoning += event.text
        elif isinstance(event, ContentDelta):
            message.content += event.text
        elif isinstance(event, ToolCallBegin):
            message.tool_calls.append(ToolCall(event.name, ""))
        elif isinstance(event, ToolCallArguments):
            call = message.tool_calls[event.index]
            message.tool_calls[event.index] = ToolCall(call.name, call.arguments + event.text)
    return message


def joined(events: list[Event]) -> list[Any]:
    """Events with deltas that follow each other joined: what must not depend on the cuts."""
    result: list[Any] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, ReasoningDelta | ContentDelta):
            assert event.text
            key: Any = type(event)
        elif isinstance(event, ToolCallArguments):
            key = (ToolCallArguments, event.index)
        else:
            result.append(event)
            continue
        if isinstance(last, list) and last[0] == key:
            last[1] += event.text
        else:
            result.append([key, event.text])
    return result


ANSWERS = [
    ("Hello.", False, ParsedMessage("", "Hello.", [])),
    ("", False, ParsedMessage("", "", [])),
    ("</think>", True, ParsedMessage("", "", [])),
    ("Hm.\n\n<b>?</think>Yes\n\n</div> <｜x", False, None),
    (
        "Hm, < and </b>\n\n<i></think>Yes.\n\n<div>\n\n<",
        True,
        ParsedMessage("Hm, < and </b>\n\n<i>", "Yes.\n\n<div>\n\n<", []),
    ),
    (f"R</think>C{CALLS}", True, ParsedMessage("R", "C", PARSED_CALLS)),
    (CALLS, False, ParsedMessage("", "", PARSED_CALLS)),
    (f"a\n\n\n{CALLS}", False, ParsedMessage("", "a\n\n\n", PARSED_CALLS)),
]
WELL_FORMED = [answer for answer in ANSWERS if answer[2] is not None]


@pytest.mark.parametrize("end", ["", E])
@pytest.mark.parametrize(("text", "thinking", "parsed"), WELL_FORMED)
def test_whole_answers(text: str, thinking: bool, parsed: ParsedMessage, end: str) -> None:
    assert parse(text + end, thinking) == parsed


@pytest.mark.parametrize("end", ["", E])
@pytest.mark.parametrize(("text", "thinking", "_parsed"), ANSWERS)
def test_every_split_gives_the_same_events(text: str, thinking: bool, _parsed: object, end: str) -> None:
    text += end
    expected = joined(stream([text], thinking)[0])
    assert joined(stream(text, thinking)[0]) == expected
    for split in range(len(text) + 1):
        assert joined(stream([text[:split], text[split:]], thinking)[0]) == expected
    for size in (2, 3, 7):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert joined(stream(pieces, thinking)[0]) == expected


def test_an_answer_cut_anywhere_shows_no_markup() -> None:
    text = f"Reason\n\n<p></think>Content\n\n<p>{CALLS}{E}"
    for end in range(len(text) + 1):
        for pieces in ([text[:end]], text[:end]):
            events, parser = stream(pieces, True)
            reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
            content = "".join(event.text for event in events if isinstance(event, ContentDelta))
            # What is shown is a beginning of the answer, but for a lone "<" that could be text.
            assert "Reason\n\n<p>".startswith(reasoning.removesuffix("<")) or reasoning == "Reason\n\n<"
            assert "Content\n\n<p>\n\n<".startswith(content)
            ends = [event.index for event in events if isinstance(event, ToolCallEnd)]
            assert ends == [0, 1][: text[:end].count("</｜DSML｜invoke")]
            # It may be whole within the content, and with all calls closed, with or without the end token.
            in_content = text.index("</think>") + 8 <= end <= text.index(CALLS) + 3
            assert (parser.unfinished is None) == (in_content or end in (len(text) - len(E), len(text)))


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("last", ["｜", "\n\n｜", "<", "\n"])
def test_text_that_no_tag_follows_is_not_lost(last: str, thinking: bool) -> None:
    """A table's last bar may be the last character of an answer, and of one that ended at its limit."""
    events, parser = stream(f"a{last}", thinking)
    assert "".join(event.text for event in events) == f"a{last}"  # type: ignore[union-attr]
    assert parser.unfinished == ("the reasoning" if thinking else None)


def test_text_is_not_held_longer_than_needed() -> None:
    parser = StreamParser(True)
    assert parser.push("a\n") == [ReasoningDelta("a")]
    assert parser.push("b</th") == [ReasoningDelta("\nb")]
    assert parser.push("ink>c") == [ContentDelta("c")]
    assert parser.push("\n\n<｜DSML｜") == []
    assert parser.push('tool_calls>\n<｜DSML｜invoke name="f') == []
    assert parser.push('">\n') == []
    assert parser.push("<｜DSML｜parameter") == [ToolCallBegin(0, "f")]
    assert parser.push(' name="k" string="true">') == [ToolCallArguments(0, '{"k": "')]
    assert parser.push('long "text"') == [ToolCallArguments(0, 'long \\"text\\"')]
    assert parser.push("</｜DSML｜parameter>\n") == [ToolCallArguments(0, '"')]
    assert parser.push("</｜DSML｜invoke>\n") == [ToolCallArguments(0, "}"), ToolCallEnd(0)]
    assert parser.unfinished == "the tool calls"
    assert parser.push("</｜DSML｜tool_calls>") == []
    assert parser.unfinished is None


@pytest.mark.parametrize("mode", ["chat", "thinking"])
@pytest.mark.parametrize(
    "calls",
    [
        [],
        [("now", {})],
        [("f", {"a": "x", "n": 1, "z": None, "t": True, "l": [1, "é", {}], "o": {"k": "v"}})],
        [
            ("f", {"code": 'if a < b:\n\n\tprint("</b>")\n', "empty": "", "json": '{"a": 1}'}),
            ("g", {"x": -1.5e-7}),
            ("f", {}),
        ],
        [("ünï", {'quoted "name"': "中文 🧑🏽‍🚀", "a>b": 0})],
    ],
)
def test_encoded_tool_calls_parse_back(mode: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    thinking = mode == "thinking"
    message = ParsedMessage(
        "R1\n" if thinking else "",
        "Some content.\n",
        [ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls],
    )
    text = encode_messages([as_message(message)], mode).removeprefix("<｜begin▁of▁sentence｜>")
    assert parse(text, thinking) == message
    # And once more: what was parsed encodes to the same text.
    assert encode_messages([as_message(parse(text, thinking))], mode).endswith(text)


def as_message(parsed: ParsedMessage) -> dict[str, Any]:
    functions = [{"name": call.name, "arguments": call.arguments} for call in parsed.tool_calls]
    calls = [{"id": f"call_{index}", "function": function} for index, function in enumerate(functions)]
    content = {"content": parsed.content, "reasoning_content": parsed.reasoning}
    return {"role": "assistant", **content, "tool_calls": calls}


def test_call_without_the_empty_line() -> None:
    text = '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
    assert parse(text, False).tool_calls == [ToolCall("now", "{}")]


def in_calls(body: str) -> str:
    call = f'<｜DSML｜invoke name="f">\n{body}\n</｜DSML｜invoke>'
    return f"\n\n<｜DSML｜tool_calls>\n{call}\n</｜DSML｜tool_calls>"


def parameter(value: str, head: str = ' name="k" string="false"') -> str:
    return f"<｜DSML｜parameter{head}>{value}</｜DSML｜parameter>"


TEXT = ' name="k" string="true"'
BROKEN = [
    (f"no end{E}", True, f"reasoning: found '{E}'; expected '</think>'"),
    (f"R{CALLS}", True, "reasoning: found .*tool_calls'; expected '</think>'"),
    ("C\n<｜DSML｜tool_calls>", False, "content: found '｜DSML｜'"),
    ("C\n\n<｜DSML｜invoke", False, "content: found '｜DSML｜'"),
    (f"C{E}x", False, "end: found 'x'; expected nothing more"),
    (f"{CALLS}\n", False, "after calls: found '.n'; expected '<｜end▁of▁sentence｜>' or nothing"),
    (CALLS[:-40] + E, False, "malformed answer, .*found"),
    (
        CALLS.replace("<｜DSML｜tool_calls>\n", "<｜DSML｜tool_calls> "),
        False,
        "between calls: found '> '; expected '>.n'",
    ),
    (in_calls("").replace(' name="f"', ""), False, "call: found .*expected ' name="),
    (in_calls("text"), False, "call: found ' name=.*text"),
    (in_calls(parameter("1") + "x"), False, "after parameter: found '>x.n'; expected '>.n'"),
    (in_calls(parameter("1", ' name="k"')), False, 'parameter: found .*expected \' name="..." string='),
    (in_calls(parameter("1", ' name="k" string="maybe"')), False, 'parameter: found .*string="true|false"'),
    (in_calls(f"{parameter('1')}\n{parameter('2')}"), False, "found 'k'; expected each parameter name once"),
    (
        in_calls(parameter("{1}")),
        False,
        r"JSON value: found '\{1\}'; expected the JSON value of parameter 'k'",
    ),
    (in_calls(parameter("")), False, "JSON value: found ''; expected the JSON value"),
    (in_calls(parameter("NaN")), False, "JSON value: found 'NaN'"),
    (in_calls(parameter("[" * 100_000)), False, "JSON value: found"),
    (
        in_calls(parameter("1").replace("</", "/")),
        False,
        "JSON value: found '/｜DSML｜parameter'; expected '</｜DSML",
    ),
    (in_calls(parameter("1", TEXT).replace("</", "/")), False, "text value: found '/｜DSML｜parameter'"),
    (in_calls(parameter(f"1{E}", TEXT)), False, "text value: found '<｜end"),
    (in_calls(parameter(f"1{E}")), False, "JSON value: found '<｜end"),
]


@pytest.mark.parametrize(("text", "thinking", "message"), BROKEN, ids=range(len(BROKEN)))
def test_broken_answers(text: str, thinking: bool, message: str) -> None:
    with pytest.raises(MalformedAnswer, match=message):
        parse(text, thinking)


@pytest.mark.parametrize(
    ("text", "thinking", "unfinished"),
    [
        ("still thinking", True, "the reasoning"),
        ("C\n\n<｜DSML｜tool", False, r"the tag '\n\n<｜DSML｜tool'"),
        (CALLS.removesuffix("</｜DSML｜tool_calls>"), False, "the tool calls"),
    ],
)
def test_what_an_answer_stopped_in_is_named(text: str, thinking: bool, unfinished: str) -> None:
    assert stream([text], thinking)[1].unfinished == unfinished


def test_a_long_integer_is_an_ordinary_value() -> None:
    digits = "1" * 10_000
    assert parse(in_calls(parameter(digits)), False).tool_calls == [ToolCall("f", f'{{"k": {digits}}}')]


@pytest.mark.parametrize(("text", "thinking", "_message"), [case for case in BROKEN if len(case[0]) < 1000])
def test_broken_answers_fail_at_every_split(text: str, thinking: bool, _message: str) -> None:
    for pieces in ([text], text, *([text[:i], text[i:]] for i in range(len(text)))):
        with pytest.raises(MalformedAnswer):
            stream(pieces, thinking)
