"""The parts of a model's answer: events while it streams."""

from __future__ import annotations

from dataclasses import dataclass


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
