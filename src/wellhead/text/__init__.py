"""Words and ids: the tokenizer, the prompt text of a chat, the answer taken apart. Imports nothing of ours.

A request goes through ``encode_messages`` (messages to text) and ``Tokenizer.encode`` (text to ids); its
answer through ``Detokenizer`` (ids to whole characters), ``StopStrings`` (cut at a stop string) and
``StreamParser`` (reasoning, content, tool calls). Each of these three holds back only what more input could
still change, so the joined output never depends on how the input was cut.
"""

from __future__ import annotations

from wellhead.text.answer import (
    ContentDelta,
    Event,
    ParsedMessage,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from wellhead.text.chat import encode_messages
from wellhead.text.detokenize import Detokenizer, StopStrings
from wellhead.text.parse import parse_completion
from wellhead.text.stream_parser import MalformedAnswer, StreamParser
from wellhead.text.tokenizer import Tokenizer
from wellhead.text.tokenizer_files import TokenizerFileError
from wellhead.text.tool_calls import ToolCall

__all__ = [
    "ContentDelta",
    "Detokenizer",
    "Event",
    "MalformedAnswer",
    "ParsedMessage",
    "ReasoningDelta",
    "StopStrings",
    "StreamParser",
    "Tokenizer",
    "TokenizerFileError",
    "ToolCall",
    "ToolCallArguments",
    "ToolCallBegin",
    "ToolCallEnd",
    "encode_messages",
    "parse_completion",
]
