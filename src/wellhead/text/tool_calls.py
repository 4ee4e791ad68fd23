"""Tool schemas, tool calls and their arguments as prompt text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wellhead.text import chat_markup as markup


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool: its name and its arguments as the text of a JSON object."""

    name: str
    arguments: str


def to_json(value: object) -> str:
    """JSON as the prompt format writes it: on one line, characters outside ASCII as they are."""
    return json.dumps(value, ensure_ascii=False)


def render_tools(functions: Sequence[dict[str, Any]]) -> str:
    """The block that tells the model its tools: instructions around one JSON schema per line."""
    return markup.TOOLS_HEAD + "\n".join(map(to_json, functions)) + markup.TOOLS_TAIL


def render_tool_calls(calls: Sequence[ToolCall]) -> str:
    """The block of tool calls at the end of an assistant message, from the two line ends before it on."""
    rendered = [
        f'{markup.INVOKE_BEGIN} name="{call.name}">\n{_render_arguments(call)}\n{markup.INVOKE_END}>'
        for call in calls
    ]
    return f"{markup.BEFORE_CALLS}{markup.CALLS_BEGIN}>\n" + "\n".join(rendered) + f"\n{markup.CALLS_END}"


def _render_arguments(call: ToolCall) -> str:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        # The format's own rule: text that is not JSON is shown to the model as one parameter of this name.
        arguments = {"arguments": call.arguments}
    if not isinstance(arguments, dict):
        raise ValueError(
            f"arguments of tool call {call.name!r} are {call.arguments!r}; "
            'expected the text of a JSON object; write {"name": value, ...}'
        )
    return "\n".join(_render_parameter(name, value) for name, value in arguments.items())


def _render_parameter(name: str, value: object) -> str:
    is_text, shown = ("true", value) if isinstance(value, str) else ("false", to_json(value))
    return f'{markup.PARAMETER_BEGIN} name="{name}" string="{is_text}">{shown}{markup.PARAMETER_END}>'
