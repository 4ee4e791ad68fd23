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
    llm = options.load(options.model_name(args))
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
    from wellhead.text import ContentDelta, MalformedAnswer, StreamParser, encode_messages

    asked = [*messages, {"role": "user", "content": turn}]
    prompt = encode_messages(asked, thinking_mode="thinking" if thinking else "chat")
    # The parser tells the answer from the reasoning, which is not shown to the model again.
    parser, events = StreamParser(thinking), []
    try:
        for delta in llm.stream(prompt, params):
            print(delta.text, end="", flush=True)
            events += parser.push(delta.text)
    except KeyboardInterrupt:
        pass
    except MalformedAnswer as error:
        print(flush=True)
        print(f"wellhead: this turn is forgotten: {error}", file=sys.stderr)
        return messages
    print(flush=True)
    events += parser.finish()
    said = "".join(event.text for event in events if isinstance(event, ContentDelta))
    # A turn without an answer would leave two user turns in a row: forget it instead.
    return [*asked, {"role": "assistant", "content": said}] if said else messages
