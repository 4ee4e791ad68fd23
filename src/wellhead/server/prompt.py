"""From the body of a chat to the text of its prompt: messages, tools, the schema of the answer, whether to think."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wellhead.server import protocol
from wellhead.server.errors import ApiError, bad
from wellhead.text.chat import encode_messages

_EFFORTS = {"minimal": None, "low": None, "medium": None, "high": "high", "xhigh": "max", "max": "max"}


def mode(body: protocol.Chat, usual: bool) -> tuple[bool, str | None]:
    """Whether to think, `usual` where the body does not say, and with what effort."""
    thinking = _asked(body.chat_template_kwargs, usual)
    if body.thinking is not None:
        thinking = body.thinking.type == "enabled"
    if body.reasoning_effort is None:
        return thinking, None
    if body.thinking is not None and thinking == (body.reasoning_effort == "none"):
        raise bad("reasoning_effort", "reasoning_effort contradicts thinking; give one of them")
    return body.reasoning_effort != "none", _EFFORTS.get(body.reasoning_effort)


def of_chat(body: protocol.Chat, thinking: bool, effort: str | None) -> str:
    tools = body.tools or []
    if body.tool_choice in (None, "auto", "none"):
        tools = tools if body.tool_choice != "none" else []
    elif not tools:
        raise bad("tool_choice", "tool_choice asks for a call, but there are no tools; add them")
    messages = [_message(message) for message in body.messages]
    return _encoded(_with(messages, functions(tools), schema(body.response_format)[0]), thinking, effort)


def of_tokenize(body: protocol.Tokenize, usual: bool) -> str:
    messages = [_message(message) for message in body.messages or []]
    thinking = _asked(body.chat_template_kwargs, usual)
    return _encoded(_with(messages, functions(body.tools), None), thinking, None)


def schema(format_: protocol.TextFormat | protocol.ObjectFormat | protocol.SchemaFormat | None) -> tuple[Any, str]:
    """(schema of the answer, None for any object; the field it is in)."""
    if isinstance(format_, protocol.SchemaFormat):
        return format_.json_schema.schema_, "response_format.json_schema.schema"
    if isinstance(format_, protocol.ObjectFormat) and format_.value is not None:
        return format_.value, "response_format.value"
    return None, "response_format"


def functions(tools: Sequence[protocol.Tool] | None) -> list[dict[str, Any]]:
    return [tool.function.model_dump(exclude_none=True) for tool in tools or ()]


def _asked(arguments: protocol.TemplateArguments | None, usual: bool) -> bool:
    if arguments is None:
        return usual
    for said in (arguments.thinking, arguments.enable_thinking):
        if said is not None:
            return said
    return usual


def _message(message: protocol.Message) -> dict[str, Any]:
    """A message as the prompt format takes it. `developer` is OpenAI's name for `system`."""
    found = message.model_dump(exclude_none=True, exclude={"name", "refusal", "annotations"})
    if found["role"] == "developer":
        found["role"] = "system"
    if isinstance(message.content, list):
        found["content"] = "".join(part.text for part in message.content)
    if message.role in ("user", "tool") and message.content is None:
        raise ApiError(400, f"content of a {message.role} message is missing", param="messages", code="invalid_value")
    return found


def _with(messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], form: Any) -> list[dict[str, Any]]:
    """Tools and the schema of the answer go into the first message if it is a system message, else into one before."""
    if not tools and form is None:
        return messages
    first, *rest = messages if messages[0]["role"] == "system" else [{"role": "system", "content": ""}, *messages]
    extra: dict[str, Any] = {}
    if tools:
        extra["tools"] = [{"type": "function", "function": function} for function in tools]
    if form is not None:
        extra["response_format"] = form
    return [{**first, **extra}, *rest]


def _encoded(messages: list[dict[str, Any]], thinking: bool, effort: str | None) -> str:
    try:
        return encode_messages(
            messages,
            thinking_mode="thinking" if thinking else "chat",
            reasoning_effort=effort if thinking else None,
        )
    except (ValueError, RecursionError) as error:
        raise bad("messages", str(error)[:500]) from None
