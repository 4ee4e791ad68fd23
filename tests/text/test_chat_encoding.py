"""The prompt text, literal by literal. The token spellings are written out here, not taken from the code."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from wellhead.text import Tokenizer, encode_messages

B, E = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
U, A = "<｜User｜>", "<｜Assistant｜>"
Message = dict[str, Any]


def user(text: str, **fields: Any) -> Message:
    return {"role": "user", "content": text, **fields}


def system(text: str | None, **fields: Any) -> Message:
    return {"role": "system", "content": text, **fields}


def developer(text: str, **fields: Any) -> Message:
    return {"role": "developer", "content": text, **fields}


def assistant(text: str | None, reasoning: str | None = None, **fields: Any) -> Message:
    return {"role": "assistant", "content": text, "reasoning_content": reasoning, **fields}


def result(call_id: str, content: Any) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def call(call_id: str, name: str, arguments: str) -> Message:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER: Message = {"name": "weather", "description": "Wetter für é", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": {"name": "now"}}]
TOOLS_TEXT = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

{"name": "weather", "description": "Wetter für é", "parameters": {"type": "object"}}
{"name": "now"}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""  # noqa: E501
MAX_TEXT = """Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.

"""  # noqa: E501
HISTORY = [system("S"), user("U1"), assistant("A1", "R1"), user("U2")]


@pytest.mark.parametrize(("mode", "last"), [("chat", 128822), ("thinking", 128821)])
def test_chat_wrap_gives_published_ids(published: Tokenizer, mode: str, last: int) -> None:
    assert published.encode(encode_messages([user("?")], mode)) == [0, 128803, 33, 128804, last]


def test_effort_max_adds_79_tokens(published: Tokenizer) -> None:
    plain, high, most = (
        published.encode(encode_messages([user("?")], "thinking", reasoning_effort=effort))
        for effort in (None, "high", "max")
    )
    assert high == plain
    assert len(most) - len(plain) == 79


def test_every_markup_token_is_one_id(published: Tokenizer) -> None:
    """The spellings in the encoder are tokens of the published tokenizer."""
    tasks = ["action", "query", "authority", "domain", "title", "read_url"]
    messages: list[Message] = []
    for task in tasks:
        messages += [user("q", task=task), assistant("a")]
    messages += [{"role": "latest_reminder", "content": "r"}, user("q")]
    messages += [assistant("", tool_calls=[call("1", "f", "{}")]), user("q")]
    ids = published.encode(encode_messages(messages, "thinking"))
    names = [
        B,
        E,
        U,
        A,
        "<think>",
        "</think>",
        "｜DSML｜",
        "<｜latest_reminder｜>",
        *(f"<｜{task}｜>" for task in tasks),
    ]
    assert {published.special(name) for name in names} <= set(ids)


def test_history_in_chat_mode() -> None:
    assert encode_messages(HISTORY) == f"{B}S{U}U1{A}</think>A1{E}{U}U2{A}</think>"


def test_history_in_thinking_mode() -> None:
    assert encode_messages(HISTORY, "thinking") == f"{B}S{U}U1{A}</think>A1{E}{U}U2{A}<think>"


def test_reasoning_after_the_last_user_message_is_kept() -> None:
    messages = [user("U1"), assistant("A1", "R1"), user("U2"), assistant("A2", "R2")]
    assert encode_messages(messages, "thinking") == f"{B}{U}U1{A}</think>A1{E}{U}U2{A}<think>R2</think>A2{E}"
    assert encode_messages(messages, "chat") == f"{B}{U}U1{A}</think>A1{E}{U}U2{A}</think>A2{E}"


def test_tools_anywhere_keep_all_reasoning() -> None:
    head = [system("S", tools=TOOLS), *HISTORY[1:]]
    expected = f"{B}S\n\n{TOOLS_TEXT}{U}U1{A}<think>R1</think>A1{E}{U}U2{A}<think>"
    assert encode_messages(head, "thinking") == expected
    # An empty list of tools is none.
    assert encode_messages([system("S", tools=[]), *HISTORY[1:]], "thinking") == encode_messages(HISTORY, "thinking")


def test_developer_messages_before_the_last_user_message_go_with_the_reasoning() -> None:
    messages = [system("S"), developer("D1"), assistant("A1", "R1"), user("U2")]
    assert encode_messages(messages, "thinking") == f"{B}SA1{E}{U}U2{A}<think>"
    assert encode_messages(messages, "chat") == f"{B}S{U}D1{A}</think>A1{E}{U}U2{A}</think>"
    with_tools = encode_messages([system("S", tools=TOOLS), *messages[1:]], "thinking")
    assert with_tools == f"{B}S\n\n{TOOLS_TEXT}{U}D1{A}<think>R1</think>A1{E}{U}U2{A}<think>"


def test_developer_message_opens_generation_with_its_tools_and_format() -> None:
    text = encode_messages([developer("D", tools=TOOLS, response_format={"type": "é"})], "thinking")
    assert text == (
        f"{B}{U}D\n\n{TOOLS_TEXT}\n\n## Response Format:\n\n"
        'You MUST strictly adhere to the following schema to reply:\n{"type": "é"}' + f"{A}<think>"
    )


def test_response_format_of_a_system_message_without_content() -> None:
    text = encode_messages([system(None, response_format={"a": [1, True]}), user("U1")])
    assert text == (
        f"{B}\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
        f'{{"a": [1, true]}}{U}U1{A}</think>'
    )


def test_effort_max_precedes_the_first_message() -> None:
    assert encode_messages(HISTORY, "thinking", reasoning_effort="max").startswith(f"{B}{MAX_TEXT}S{U}U1")
    assert encode_messages(HISTORY, "chat", reasoning_effort="max") == encode_messages(HISTORY, "chat")


def test_latest_reminder() -> None:
    reminder = {"role": "latest_reminder", "content": "2026-04-24"}
    assert encode_messages([reminder, user("U1")]) == f"{B}<｜latest_reminder｜>2026-04-24{U}U1{A}</think>"
    assert encode_messages([user("U1"), reminder]) == f"{B}{U}U1{A}</think><｜latest_reminder｜>2026-04-24"


def test_only_the_last_of_several_messages_opens_generation() -> None:
    assert encode_messages([user("a"), user("b"), system("S"), user("c")]) == f"{B}{U}a\n\nbS{U}c{A}</think>"
    assert encode_messages([user("a"), system("S")]) == f"{B}{U}aS"


def test_tool_calls_text() -> None:
    arguments = json.dumps({"city": "Köln", "days": 3, "unit": None, "tags": ["é", 1.5], "quoted": '<"x">'})
    message = assistant("Let me see.", tool_calls=[call("1", "weather", arguments), call("2", "now", "{}")])
    assert encode_messages([user("q"), message, user("r")]) == (
        f"{B}{U}q{A}</think>Let me see.\n\n"
        "<｜DSML｜tool_calls>\n"
        '<｜DSML｜invoke name="weather">\n'
        '<｜DSML｜parameter name="city" string="true">Köln</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="unit" string="false">null</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="tags" string="false">["é", 1.5]</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="quoted" string="true"><"x"></｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n"
        '<｜DSML｜invoke name="now">\n'
        "\n"
        "</｜DSML｜invoke>\n"
        f"</｜DSML｜tool_calls>{E}{U}r{A}</think>"
    )


def test_arguments_that_are_not_json_become_one_parameter() -> None:
    text = encode_messages([assistant(None, tool_calls=[call("1", "f", "{broken")])])
    assert '<｜DSML｜parameter name="arguments" string="true">{broken</｜DSML｜parameter>' in text


def test_tool_results_take_the_order_of_the_calls() -> None:
    calls = [call("a", "f", "{}"), call("b", "f", "{}"), call("c", "f", "{}")]
    messages = [
        user("q"),
        assistant("", "R", tool_calls=calls),
        result("c", "3"),
        result("a", "1"),
        result("b", "2"),
    ]
    turn = "<tool_result>1</tool_result>\n\n<tool_result>2</tool_result>\n\n<tool_result>3</tool_result>"
    assert encode_messages(messages).endswith(f"</｜DSML｜tool_calls>{E}{U}{turn}{A}</think>")
    # A text between results keeps its place; the results move around it.
    mixed = [*messages[:3], user("note"), *messages[3:]]
    turn = "<tool_result>1</tool_result>\n\nnote\n\n<tool_result>2</tool_result>\n\n<tool_result>3</tool_result>"
    assert encode_messages(mixed).endswith(f"{E}{U}{turn}{A}</think>")


def test_the_latest_calls_give_the_order() -> None:
    first, second = [call("a", "f", "{}"), call("b", "f", "{}")], [call("b", "f", "{}"), call("a", "f", "{}")]
    messages = [assistant("", tool_calls=first), user("q"), assistant("", tool_calls=second)]
    text = encode_messages([*messages, result("a", "1"), result("b", "2")])
    assert text.endswith(f"{U}<tool_result>2</tool_result>\n\n<tool_result>1</tool_result>{A}</think>")


def test_results_of_an_unknown_call_sort_with_the_first_call() -> None:
    messages = [assistant("", tool_calls=[call("a", "f", "{}"), call("b", "f", "{}")])]
    messages += [result("b", "2"), result("?", "x"), result("a", "1")]
    assert encode_messages(messages).endswith(
        f"{U}<tool_result>x</tool_result>\n\n<tool_result>1</tool_result>\n\n<tool_result>2</tool_result>{A}</think>"
    )


def test_tool_result_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    text = encode_messages([result("1", parts)])
    assert text == f"{B}{U}<tool_result>a\n\n[Unsupported image_url]\n\nb</tool_result>{A}</think>"


def test_a_tool_result_is_the_last_user_message() -> None:
    messages = [user("q"), assistant("", "R", tool_calls=[call("1", "f", "{}")]), result("1", "ok")]
    assert "R</think>" not in encode_messages(messages, "thinking")
    with_tools = encode_messages([system("", tools=TOOLS), *messages], "thinking")
    assert f"{A}<think>R</think>\n\n<｜DSML｜tool_calls>" in with_tools
    assert with_tools.endswith(f"{U}<tool_result>ok</tool_result>{A}<think>")


@pytest.mark.parametrize("task", ["query", "authority", "domain", "title", "read_url"])
def test_task_token_follows_the_message(task: str) -> None:
    assert encode_messages([user("q", task=task)], "thinking") == f"{B}{U}q<｜{task}｜>"


def test_action_task_opens_the_answer_first() -> None:
    assert encode_messages([user("q", task="action")], "chat") == f"{B}{U}q{A}</think><｜action｜>"
    assert encode_messages([user("q", task="action")], "thinking") == f"{B}{U}q{A}<think><｜action｜>"


def test_the_answer_to_a_task_has_no_reasoning() -> None:
    messages = [user("q", task="title"), assistant("T", "R")]
    text = encode_messages(messages, "thinking")
    assert text == f"{B}{U}q<｜title｜>T{E}"


def test_merging_stops_after_a_task() -> None:
    messages = [user("q", task="query"), user("next")]
    assert encode_messages(messages) == f"{B}{U}q{U}next{A}</think>"
    # A tool result still joins.
    messages = [user("q", task="query"), result("1", "ok")]
    assert encode_messages(messages) == f"{B}{U}q\n\n<tool_result>ok</tool_result><｜query｜>"


def test_answer_to_be_continued_has_no_end() -> None:
    text = encode_messages([user("q"), assistant("Once upon", "R", wo_eos=True)], "thinking")
    assert text == f"{B}{U}q{A}<think>R</think>Once upon"


def test_input_is_not_changed() -> None:
    messages = [assistant("", tool_calls=[call("a", "f", "{}")]), result("a", "1"), user("x")]
    before = json.dumps(messages)
    encode_messages(messages, "thinking")
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"role": "bot", "content": "x"},
            r"messages\[1\]: role is 'bot'; expected one of system, developer, user",
        ),
        ({"content": "x"}, r"messages\[1\]: role is None; expected one of"),
        ("text", r"messages\[1\]: the message is 'text'; expected an object with `role`"),
        (user("x", task="poem"), r"task is 'poem'; expected one of action, query"),
        (user("x", task=["action"]), r"task is \['action'\]; expected one of action, query"),
        (
            assistant("", tool_calls=[{"id": ["a"], "function": {"name": "f", "arguments": "{}"}}]),
            r"messages\[1\]\.tool_calls\[0\]: id is \['a'\]; expected a str",
        ),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, r"content is \[.*; expected a str"),
        ({"role": "user", "content": None}, r"messages\[1\]: content is None; expected a str"),
        (
            {"role": "tool", "content": 3},
            r"content of a tool message is 3; expected a str or a list of parts",
        ),
        ({"role": "tool", "content": "x", "tool_call_id": 7}, r"tool_call_id is 7; expected the id \(str\)"),
        (developer(""), r"content of a developer message is ''; expected text that is not empty"),
        ({"role": "latest_reminder"}, r"content of a latest_reminder message is ''; expected text"),
        (
            user("x", tools=TOOLS),
            r"tools of a user message is .*; expected this field on system or developer",
        ),
        (
            user("x", tool_calls=[call("1", "f", "{}")]),
            r"tool_calls of a user message is .* on assistant messages only",
        ),
        (user("x", content_blocks=[{}]), r"content_blocks of a user message is .*; expected no such field"),
        (system("x", reasoning_content="r"), r"reasoning_content of a system message is 'r'"),
        (assistant("x", 3), r"reasoning_content is 3; expected a str"),  # type: ignore[arg-type]
        (
            system("x", tools=[{"name": "f"}]),
            r"tools\[0\] is \{'name': 'f'\}; expected \{\"type\": \"function\"",
        ),
        (system("x", tools={"a": 1}), r"tools is \{'a': 1\}; expected a list"),
        (assistant("", tool_calls=[call("1", "", "{}")]), r"tool_calls\[0\] is .*wrap the function's fields"),
        (assistant("", tool_calls=[call("1", "f", {"a": 1})]), r"arguments is \{'a': 1\}; expected the text"),  # type: ignore[arg-type]
        (
            assistant("", tool_calls=[call("1", "f", "[1]")]),
            r"arguments of tool call 'f' are '\[1\]'; expected the text",
        ),
    ],
)
def test_bad_message(message: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        encode_messages([system("S"), message])


def test_a_task_is_not_lost_in_merging() -> None:
    with pytest.raises(ValueError, match=r"messages\[1\]: task is 'title'; expected none, since this text joins"):
        encode_messages([result("1", "ok"), user("x", task="title")])


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="thinking_mode is 'on'; expected 'chat' or 'thinking'"):
        encode_messages([user("x")], "on")
    for effort in ("low", "xhigh", "", 3, ["max"]):
        said = re.escape(f"reasoning_effort is {effort!r}; expected one of None, 'high', 'max'")
        with pytest.raises(ValueError, match=said):
            encode_messages([user("x")], "thinking", reasoning_effort=effort)  # type: ignore[arg-type]
