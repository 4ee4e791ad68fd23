"""The parts of a model's answer: events while it streams, and the whole message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wellhead.text.tool_calls import ToolCall


@dataclass(frozen=True)
class ReasoningDelta:
    """More text of the reasoning."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """More text of the answer itself."""

    text: str


@dataclass(frozen=True)
class ToolCallBegin:
    """Tool call number ``index`` (from 0) begins; it calls the tool ``name``."""

    index: int
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """More text of the arguments of a call; its deltas joined are the text of a JSON object."""

    index: int
    text: str


@dataclass(frozen=True)
class ToolCallEnd:
    """The arguments of this call are complete."""

    index: int


Event = ReasoningDelta | ContentDelta | ToolCallBegin | ToolCallArguments | ToolCallEnd


@dataclass(frozen=True)
class ParsedMessage:
    """An answer taken apart; ``reasoning`` is empty in chat mode."""

    reasoning: str
    content: str
    tool_calls: list[ToolCall]

    def as_message(self) -> dict[str, Any]:
        """The assistant message that ``encode_messages`` takes; calls get the ids "call_0", "call_1", ..."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.content,
            "reasoning_content": self.reasoning,
        }
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{index}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for index, call in enumerate(self.tool_calls)
            ]
        return message
