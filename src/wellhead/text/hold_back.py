"""Finding marker strings in text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property


class MarkerSearch:
    """Finds the first of several marker strings, or the place from which more text could still complete one.

    The answer does not depend on how the text was cut into pieces: a marker that starts earlier wins even
    when a later one is complete first.
    """

    def __init__(self, markers: Sequence[str]):
        self.markers = tuple(markers)
        self._firsts = {marker[0] for marker in markers}
        self._longest_start = max(map(len, markers), default=1) - 1

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.markers)))

    def complete(self, text: str, begin: int = 0) -> tuple[int, str | None]:
        """Position and spelling of the first complete marker from ``begin`` on; (len(text), None) if none."""
        match = self._pattern.search(text, begin) if self.markers else None
        return (match.start(), match.group()) if match else (len(text), None)

    def first(self, text: str, begin: int = 0) -> tuple[int, str | None]:
        """As ``complete``, but (position, None) when a marker may begin earlier and go on past the end.

        Text before the position is certain; text from there on must be held back until more arrives.
        """
        position, marker = self.complete(text, begin)
        for start in range(max(begin, len(text) - self._longest_start), position):
            if text[start] in self._firsts and any(marker.startswith(text[start:]) for marker in self.markers):
                return start, None
        return position, marker
