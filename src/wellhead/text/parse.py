"""The text of a whole answer taken apart, by the grammar of ``stream_parser``."""

from __future__ import annotations

from wellhead.text import chat_markup as markup
from wellhead.text.answer import ContentDelta, ParsedMessage, ReasoningDelta, ToolCallArguments, ToolCallBegin
from wellhead.text.stream_parser import MalformedAnswer, StreamParser
from wellhead.text.tool_calls import ToolCall

__all__ = ["MalformedAnswer", "ParsedMessage", "StreamParser", "parse_completion"]


def parse_completion(text: str, thinking: bool, require_end: bool = False) -> ParsedMessage:
    """Take a whole answer apart.

    ``text`` starts right after the prompt. The end token may be missing, since engines strip it, unless
    ``require_end``. Raises MalformedAnswer (a ValueError) for text outside the grammar: reasoning that is not
    closed, unfinished or broken tool calls, text after the end, or prompt markup inside reasoning or content.
    """
    parser = StreamParser(thinking)
    reasoning: list[str] = []
    content: list[str] = []
    names: list[str] = []
    arguments: list[str] = []
    for event in [*parser.push(text), *parser.finish()]:
        match event:
            case ReasoningDelta():
                reasoning.append(event.text)
            case ContentDelta():
                content.append(event.text)
            case ToolCallBegin():
                names.append(event.name)
                arguments.append("")
            case ToolCallArguments():
                arguments[event.index] += event.text
    if parser.unfinished is not None or (require_end and not parser.ended):
        where = parser.unfinished or "the answer"
        end = f", then {markup.EOS!r}" if require_end else ""
        raise MalformedAnswer(
            f"malformed answer: it stops in {where}, after {text[-40:]!r}; "
            f"expected {markup.THINK_END!r} after the reasoning of thinking mode and closed tool calls{end}; "
            "raise the limit on new tokens, or use StreamParser, which takes cut-off answers"
        )
    message = ParsedMessage(
        "".join(reasoning),
        "".join(content),
        [ToolCall(name, argument) for name, argument in zip(names, arguments, strict=True)],
    )
    for token in (markup.BOS, markup.THINK_BEGIN, markup.THINK_END):
        for part, value in (("reasoning", message.reasoning), ("content", message.content)):
            if token in value:
                raise MalformedAnswer(
                    f"malformed answer: {token!r} inside the {part}; expected no prompt markup there; "
                    "check that `thinking` matches the mode of the prompt"
                )
    return message
