"""Chat messages to the prompt text of DeepSeek-V4 (release of April 2026), which has no chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wellhead.text import chat_markup as markup
from wellhead.text.chat_messages import Turn, order_tool_results, to_turns
from wellhead.text.tool_calls import render_tool_calls, render_tools, to_json


def encode_messages(
    messages: Sequence[Mapping[str, Any]], thinking_mode: str = "chat", reasoning_effort: str | None = None
) -> str:
    """The prompt text of ``messages``, to be passed to ``Tokenizer.encode``.

    Messages have the fields of the OpenAI chat format: ``role`` (system, developer, user, latest_reminder,
    assistant, tool), ``content``, and where they apply ``tools``, ``response_format``, ``reasoning_content``,
    ``tool_calls``, ``tool_call_id``, ``task``, ``wo_eos``. Unknown fields are ignored.

    In thinking mode, if no message carries tools, the reasoning of assistant turns before the last user message is
    left out, and so are developer messages before it. ``reasoning_effort`` None, "high" (both write nothing) or "max"
    (a text before the first message); chat mode ignores it, as the format does.

    Raises ValueError naming the value, what was expected and the fix.
    """
    if thinking_mode not in ("chat", "thinking"):
        raise ValueError(
            f"thinking_mode is {thinking_mode!r}; expected 'chat' or 'thinking'; choose one of them"
        )
    if reasoning_effort not in tuple(markup.EFFORT_PREFIX):
        known = ", ".join(map(repr, markup.EFFORT_PREFIX))
        raise ValueError(
            f"reasoning_effort is {reasoning_effort!r}; expected one of {known}; "
            "other levels belong to the prompt formats of later releases"
        )
    thinking = thinking_mode == "thinking"
    turns = to_turns(messages)
    order_tool_results(turns)
    drop = thinking and not any(turn.functions for turn in turns)
    last_user = _last_user(turns)
    if drop:
        turns = [turn for index, turn in enumerate(turns) if index >= last_user or turn.role != "developer"]
        last_user = _last_user(turns)

    text = markup.BOS + (markup.EFFORT_PREFIX[reasoning_effort] if thinking and turns else "")
    for index, turn in enumerate(turns):
        previous = turns[index - 1] if index else None
        following = turns[index + 1] if index + 1 < len(turns) else None
        # Unless all is kept, reasoning is opened by the last user message and written after it.
        text += _render(turn, previous, thinking and (not drop or index > last_user))
        text += _open_answer(turn, following, thinking, thinking and (not drop or index >= last_user))
    return text


def _last_user(turns: Sequence[Turn]) -> int:
    return max((index for index, turn in enumerate(turns) if turn.role in ("user", "developer")), default=-1)


def _render(turn: Turn, previous: Turn | None, with_reasoning: bool) -> str:
    """The text of one turn, without what opens the next one."""
    if turn.role == "user":
        return markup.USER + "\n\n".join(block.render() for block in turn.blocks)
    if turn.role == "latest_reminder":
        return markup.LATEST_REMINDER + turn.content
    if turn.role == "assistant":
        # The answer to a task comes without a reasoning part.
        answers_task = previous is not None and previous.task is not None
        reasoning = turn.reasoning + markup.THINK_END if with_reasoning and not answers_task else ""
        calls = render_tool_calls(turn.tool_calls) if turn.tool_calls else ""
        return reasoning + turn.content + calls + ("" if turn.wo_eos else markup.EOS)
    text = (markup.USER if turn.role == "developer" else "") + turn.content
    if turn.functions:
        text += "\n\n" + render_tools(turn.functions)
    if turn.response_format:
        text += "\n\n" + markup.RESPONSE_FORMAT + to_json(turn.response_format)
    return text


def _open_answer(turn: Turn, following: Turn | None, thinking: bool, opens_reasoning: bool) -> str:
    """What makes the model answer this turn: the assistant token and a thinking tag, or a task token."""
    if following is not None and following.role not in ("assistant", "latest_reminder"):
        return ""
    if turn.task == "action":
        # A task at any place opens reasoning by the mode alone.
        return (
            markup.ASSISTANT + (markup.THINK_BEGIN if thinking else markup.THINK_END) + markup.TASKS["action"]
        )
    if turn.task is not None:
        return markup.TASKS[turn.task]
    if turn.role not in ("user", "developer"):
        return ""
    return markup.ASSISTANT + (markup.THINK_BEGIN if opens_reasoning else markup.THINK_END)
