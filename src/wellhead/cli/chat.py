"""`wellhead chat`: a conversation on the terminal, or one turn a line from a pipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wellhead.cli import options

if TYPE_CHECKING:
    from wellhead.engine.llm import LLM
    from wellhead.engine.sampling_params import SamplingParams
    from wellhead.text import Event

_EXAMPLES = """examples:
  wellhead chat
  wellhead chat --thinking --temperature 0.6
  printf 'What is the capital of France?\\nAnd of Italy?\\n' | wellhead chat

/reset forgets the conversation, /exit (or end of input) leaves, Ctrl-C stops an answer.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "chat",
        help="hold a conversation",
        description="Hold a conversation with the model's own chat markup.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message that opens the conversation")
    parser.add_argument("--thinking", action="store_true", help="let the model reason before it answers")
    options.add_model(parser)
    options.add_sampling(parser)
    options.add_debug(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    params = options.sampling_params(args)
    llm = options.load(options.model_name(args), args)
    opening = [{"role": "system", "content": args.system}] if args.system else []
    messages: list[dict[str, Any]] = list(opening)
    for turn in _turns():
        if turn == "/exit":
            break
        if turn == "/reset":
            messages = list(opening)
            continue
        if turn.startswith("/"):
            print(f"unknown command {turn.split()[0]}; there are /reset and /exit", file=sys.stderr)
            continue
        if turn:
            messages = _exchange(llm, messages, turn, params, args.thinking)
    return 0


def _turns() -> Iterator[str]:
    """What the user types, stripped, until the end of input."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # noqa: F401  (gives `input` line editing and a history, kept in memory only)

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            # As in a shell, Ctrl-C at the prompt drops the line.
            print()


def _exchange(
    llm: LLM, messages: list[dict[str, Any]], turn: str, params: SamplingParams, thinking: bool
) -> list[dict[str, Any]]:
    """Stream the answer to `turn`; return the conversation with both. Ctrl-C keeps what was said so far."""
    from wellhead.engine.request import RequestError
    from wellhead.text import ContentDelta, MalformedAnswer, StreamParser, encode_messages

    asked = [*messages, {"role": "user", "content": turn}]
    prompt = encode_messages(asked, thinking_mode="thinking" if thinking else "chat")
    # The parser tells the answer from the reasoning, which is not shown to the model again.
    parser = StreamParser(thinking)
    events: list[Event] = []
    try:
        for delta in llm.stream(prompt, params):
            events += _shown(parser.push(delta.text), events)
    except KeyboardInterrupt:
        pass
    except (MalformedAnswer, RequestError) as error:  # the second: a conversation that has grown too long
        print(flush=True)
        print(f"wellhead: this turn is forgotten: {error}", file=sys.stderr)
        return messages
    events += _shown(parser.finish(), events)
    print(flush=True)
    said = "".join(event.text for event in events if isinstance(event, ContentDelta))
    # A turn without an answer would leave two user turns in a row: forget it instead.
    return [*asked, {"role": "assistant", "content": said}] if said else messages


def _shown(events: list[Event], before: list[Event]) -> list[Event]:
    """Print events as they come, reasoning dimmed on a terminal and on lines of its own; returns them."""
    from wellhead.text import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallBegin

    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
    last = before[-1] if before else None
    for event in events:
        if isinstance(last, ReasoningDelta) and not isinstance(event, ReasoningDelta):
            print()
        if isinstance(event, ReasoningDelta):
            print(f"{dim}{event.text}{plain}", end="")
        elif isinstance(event, ContentDelta | ToolCallArguments):
            print(event.text, end="")
        elif isinstance(event, ToolCallBegin):
            print(f"[calls {event.name}] ", end="")
        last = event
    sys.stdout.flush()
    return events
