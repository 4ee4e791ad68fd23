"""Options that only some modes of a command read. In another they are refused: in silence they would change nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ABSENT: list[object] = []  # a list, because actions that append copy what they find


class Modes:
    """A command's modes, by what a user types for them; `asked` says which one a command line is."""

    def __init__(self, parser: argparse.ArgumentParser, asked: Callable[[argparse.Namespace], str]):
        self._parser, self._asked = parser, asked
        self._readers: dict[str, tuple[str, ...]] = {}
        parser.set_defaults(modes=self)

    @contextmanager
    def only(self, *modes: str) -> Iterator[None]:
        """Options that are added inside are these modes' alone."""
        before = {action.dest for action in self._parser._actions}
        yield
        added = {action.dest for action in self._parser._actions} - before
        self._readers |= dict.fromkeys(added - self._readers.keys(), modes)

    def check(self, args: argparse.Namespace) -> None:
        """ValueError names an option that was given and is not read."""
        mode = self._asked(args)
        absent = argparse.Namespace(**dict.fromkeys(vars(args), _ABSENT))
        given = self._parser.parse_args(args.words[1:], absent)  # a value that is the default was still given
        for action in self._parser._actions:
            readers = self._readers.get(action.dest, (mode,))
            if mode not in readers and getattr(given, action.dest) is not _ABSENT:
                where = " and ".join(filter(None, (", ".join(readers[:-1]), readers[-1])))
                option = action.option_strings[-1]
                raise ValueError(f"{option} belongs to {where}, {mode} does not read it; leave it out")
