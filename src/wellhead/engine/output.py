"""A request's tokens as text: whole characters, stop strings, end tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wellhead.engine.request import FinishReason
from wellhead.text.detokenize import Detokenizer, StopStrings
from wellhead.text.tokenizer import Tokenizer

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Delta:
    """What one step added to a request; `finish_reason` is set on its last one only.

    `token_ids` holds every token generated, the end token included; `text` never shows the end token or a
    stop string.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None


class TextOutput:
    """Turns tokens into text as they come; without a tokenizer the text stays empty."""

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str]):
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer) if tokenizer is not None else None
        self._stops = StopStrings(list(stop))

    def push(self, token: int) -> tuple[str, bool]:
        """Text made certain by `token`, and whether a stop string was reached."""
        if self._detokenizer is None:
            return "", False
        try:
            text = self._detokenizer.push(token)
        except ValueError:
            # the vocabulary matrix has rows beyond the tokenizer; one such id must not end other requests
            text = self._detokenizer.finish() + UNKNOWN
        return self._stops.push(text)

    def finish(self) -> tuple[str, bool]:
        """The text held back so far, and whether a stop string turned out to be in it."""
        if self._detokenizer is None:
            return "", False
        text, stopped = self._stops.push(self._detokenizer.finish())
        text += self._stops.finish()
        return text, stopped or self._stops.matched is not None
