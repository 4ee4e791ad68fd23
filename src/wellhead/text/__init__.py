"""Words and ids: the tokenizer, the prompt text of a chat, the answer taken apart. Imports nothing of ours.

A request goes through ``chat.encode_messages`` (messages to text) and ``Tokenizer.encode`` (text to ids); its answer
through ``detokenize.Detokenizer`` (ids to whole characters), ``detokenize.StopStrings`` (cut at a stop string) and
``StreamParser`` (reasoning, content, tool calls). Each of these three holds back only what more input could still
change, so the joined output never depends on how the input was cut.
"""

from __future__ import annotations

from wellhead.text.answer import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallBegin, ToolCallEnd
from wellhead.text.chat import encode_messages
from wellhead.text.stream_parser import MalformedAnswer, StreamParser
from wellhead.text.tokenizer import Tokenizer

__all__ = [
    "ContentDelta",
    "Event",
    "MalformedAnswer",
    "ReasoningDelta",
    "StreamParser",
    "Tokenizer",
    "ToolCallArguments",
    "ToolCallBegin",
    "ToolCallEnd",
    "encode_messages",
]
