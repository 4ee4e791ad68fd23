"""Token ids to text while they are generated: whole characters only, cut at the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from wellhead.text.hold_back import MarkerSearch
from wellhead.text.tokenizer import Tokenizer


class Detokenizer:
    """Incremental ``Tokenizer.decode``: all pieces joined equal ``decode`` of all ids.

    One id costs time proportional to its own bytes, whatever came before: a byte-level piece decodes the same
    in every context, so only the bytes of an unfinished UTF-8 character (at most three) are kept.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """Text made certain by one more id: whole characters, and U+FFFD for bytes that are not UTF-8."""
        return self._decoder.decode(self._tokenizer.token_bytes(index))

    def finish(self) -> str:
        """What is left: U+FFFD (as in ``decode``) if the ids stopped inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Cuts streamed text at the first stop string and holds back what might be the beginning of one.

    The stop string that starts first wins, whatever the pieces; the stop string itself is not emitted.
    ``matched`` is the stop string found, or None.
    """

    def __init__(self, stops: Sequence[str]):
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(
                f"stop strings {stops!r}: expected a list of non-empty str; remove the empty ones"
            )
        self._search = MarkerSearch(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string was reached; what follows one is dropped."""
        if self.matched is not None:
            return "", True
        self._held += text
        position, self.matched = self._search.first(self._held)
        return self._release(position), self.matched is not None

    def finish(self) -> str:
        """The held-back text, once no more is coming; still cut at a stop string inside it."""
        position, matched = self._search.complete(self._held)
        self.matched = self.matched or matched
        return self._release(position) if self._held else ""

    def _release(self, position: int) -> str:
        text, self._held = self._held[:position], self._held[position:] if self.matched is None else ""
        return text
