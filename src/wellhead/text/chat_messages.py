"""Chat messages checked and brought to the turns of the prompt: tool results become part of a user turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wellhead.text import chat_markup as markup
from wellhead.text.tool_calls import ToolCall

_ROLES = ("system", "developer", "user", "latest_reminder", "assistant", "tool")
# Fields that mean something for some roles only; elsewhere they would be lost without a word.
_ROLES_OF_FIELD = {
    "tools": ("system", "developer"),
    "response_format": ("system", "developer"),
    "tool_calls": ("assistant",),
    "reasoning_content": ("assistant",),
    "wo_eos": ("assistant",),
    "content_blocks": (),
}


@dataclass(frozen=True)
class Block:
    """One part of a user turn: a text (``call_id`` None) or the result of the tool call with that id."""

    text: str
    call_id: str | None = None

    def render(self) -> str:
        return self.text if self.call_id is None else f"{markup.RESULT_BEGIN}{self.text}{markup.RESULT_END}"


@dataclass
class Turn:
    """A message after checking. ``blocks`` is used by user turns, ``content`` by all others."""

    role: str
    content: str = ""
    reasoning: str = ""
    task: str | None = None
    wo_eos: bool = False
    tool_calls: list[ToolCall] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)
    functions: list[dict[str, Any]] = field(default_factory=list)
    response_format: object = None
    blocks: list[Block] = field(default_factory=list)


def to_turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Check every message and merge tool results and user texts that follow each other into one user turn.

    A text does not join a user turn that carries a task; a tool result does.
    """
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        turn = _check(message, place)
        last = turns[-1] if turns else None
        is_result = bool(turn.blocks) and turn.blocks[0].call_id is not None
        if turn.role != "user" or last is None or last.role != "user" or (last.task is not None and not is_result):
            turns.append(turn)
        elif turn.task is not None:
            raise _bad(place, "task", turn.task, "none, since this text joins the user turn before it", "merge the two")
        else:
            last.blocks.extend(turn.blocks)
    return turns


def order_tool_results(turns: Sequence[Turn]) -> None:
    """Sort the tool results of each user turn, in their places, by the order of the last calls before it.

    A result whose id that turn did not give sorts with its first call; equal keys keep their order.
    """
    order: dict[str, int] = {}
    for turn in turns:
        if turn.tool_calls:
            order = {call_id: index for index, call_id in enumerate(turn.call_ids) if call_id}
        places = [place for place, block in enumerate(turn.blocks) if block.call_id is not None]
        results = sorted(
            (turn.blocks[place] for place in places), key=lambda block: order.get(block.call_id or "", 0)
        )
        for place, block in zip(places, results, strict=True):
            turn.blocks[place] = block


def _bad(place: str, name: str, value: object, expected: str, fix: str) -> ValueError:
    shown = repr(value)
    return ValueError(
        f"{place}: {name} is {shown if len(shown) < 200 else shown[:197] + '...'}; expected {expected}; {fix}"
    )


def _check(message: Mapping[str, Any], place: str) -> Turn:
    if not isinstance(message, Mapping):
        raise _bad(place, "the message", message, "an object with `role` and `content`", "wrap the text in one")
    role = message.get("role")
    if role not in _ROLES:
        raise _bad(place, "role", role, f"one of {', '.join(_ROLES)}", "rename it")
    for name, roles in _ROLES_OF_FIELD.items():
        if message.get(name) and role not in roles:
            allowed = f"this field on {' or '.join(roles)} messages only" if roles else "no such field"
            raise _bad(place, f"{name} of a {role} message", message[name], allowed, "move or remove it")
    task = message.get("task")
    if task is not None and (task not in tuple(markup.TASKS) or role == "tool"):
        tasks = f"one of {', '.join(markup.TASKS)}, not on a tool message"
        raise _bad(place, "task", task, tasks, "remove or rename it")

    if role == "tool":
        call_id = message.get("tool_call_id", "")
        if not isinstance(call_id, str):
            raise _bad(place, "tool_call_id", call_id, "the id (str) of the call it answers", "copy it from the call")
        return Turn("user", blocks=[Block(_result_text(message.get("content", ""), place), call_id)])
    content = _text(message, "content", place, may_be_null=role in ("system", "assistant"))
    if role == "user":
        return Turn("user", task=task, blocks=[Block(content)])
    if not content and role in ("developer", "latest_reminder"):
        name = f"content of a {role} message"
        raise _bad(place, name, content, "text that is not empty", "fill or remove the message")
    calls = _objects(message, "tool_calls", place)
    return Turn(
        role,
        content,
        reasoning=_text(message, "reasoning_content", place, may_be_null=True),
        task=task,
        wo_eos=bool(message.get("wo_eos")),
        tool_calls=[_tool_call(call, f"{place}.tool_calls[{index}]") for index, call in enumerate(calls)],
        call_ids=[_call_id(call, f"{place}.tool_calls[{index}]") for index, call in enumerate(calls)],
        functions=[tool["function"] for tool in _objects(message, "tools", place)],
        response_format=message.get("response_format"),
    )


def _text(message: Mapping[str, Any], name: str, place: str, *, may_be_null: bool) -> str:
    value = message.get(name, "")
    if value is None and may_be_null:
        return ""
    if not isinstance(value, str):
        raise _bad(place, name, value, "a str", "join the text parts first")
    return value


def _result_text(content: object, place: str) -> str:
    """A tool result is text or a list of parts; parts that are not text leave a note for the model."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise _bad(place, "content of a tool message", content, "a str or a list of parts", "turn it into text")
    parts = [
        _text(part, "text", place, may_be_null=False)
        if part.get("type") == "text"
        else f"[Unsupported {part.get('type')}]"
        for part in content
    ]
    return "\n\n".join(parts)


def _objects(message: Mapping[str, Any], name: str, place: str) -> list[dict[str, Any]]:
    """The list under ``tools`` or ``tool_calls``; every item must hold a `function` with a name."""
    values = message.get(name) or []
    if not isinstance(values, list):
        raise _bad(place, name, values, "a list", "put it into one")
    for index, value in enumerate(values):
        function = value.get("function") if isinstance(value, dict) else None
        called = function.get("name") if isinstance(function, dict) else None
        if not isinstance(called, str) or not called:
            shape = '{"type": "function", "function": {"name": ..., ...}}'
            raise _bad(place, f"{name}[{index}]", value, shape, "wrap the function's fields in `function`")
    return values


def _call_id(call: dict[str, Any], place: str) -> str:
    call_id = call.get("id") or call["function"].get("id") or ""
    if not isinstance(call_id, str):
        raise _bad(place, "id", call_id, "a str, which the result names as tool_call_id", "write it as text")
    return call_id


def _tool_call(call: dict[str, Any], place: str) -> ToolCall:
    arguments = call["function"].get("arguments")
    if not isinstance(arguments, str):
        raise _bad(place, "arguments", arguments, "the text (str) of a JSON object", "pass it through json.dumps")
    return ToolCall(call["function"]["name"], arguments)
