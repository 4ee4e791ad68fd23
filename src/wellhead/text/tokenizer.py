"""Text to token ids and back, from the tokenizer files of a checkpoint folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from wellhead.text.tokenizer_files import PAST_IDS, read_backend, read_special_ids

_BYTE_LEVEL_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def _byte_of_character() -> dict[str, int]:
    """Inverse of the byte-level alphabet of GPT-2 (Radford et al. 2019): a character stands for a byte."""
    hidden = [byte for byte in range(256) if byte not in _BYTE_LEVEL_PRINTABLE]
    table = {chr(byte): byte for byte in _BYTE_LEVEL_PRINTABLE}
    table.update({chr(256 + offset): byte for offset, byte in enumerate(hidden)})
    return table


_BYTE_OF = _byte_of_character()


class Tokenizer:
    """Byte-level BPE tokenizer with the special ids of its checkpoint.

    Every special id is looked up by the token's name, so a checkpoint that moves its ids still works.
    ``bos_id`` is None when no file names a begin token; ``eos_ids`` always holds at least one id.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, source: Path, eos_ids: frozenset[int], bos_id: int | None
    ):
        self._backend = backend
        self._added = backend.get_added_tokens_decoder()
        self.source = source
        self.eos_ids = eos_ids
        self.bos_id = bos_id

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Load ``tokenizer.json`` and, for the begin and end tokens, the configuration files beside it.

        End ids: the ``eos_token`` of tokenizer_config.json, together with ``eos_token_id`` of
        generation_config.json (config.json only where that one has none). Raises TokenizerFileError for a
        missing or damaged file, an id outside the vocabulary, or files that name two different begin tokens.
        """
        folder = Path(path)
        backend = read_backend(folder / "tokenizer.json")
        return cls(backend, folder / "tokenizer.json", *read_special_ids(folder, backend))

    @cached_property
    def _largest_id(self) -> int:
        return max(self._backend.get_vocab(with_added_tokens=True).values())

    def special(self, name: str) -> int:
        """Id of the added token spelled ``name``; ValueError when the tokenizer has no such added token."""
        index = self._backend.token_to_id(name)
        if index is None or index not in self._added:
            raise ValueError(
                f"{self.source}: no added token {name!r}; expected it among `added_tokens`; "
                "use the tokenizer.json that came with this checkpoint"
            )
        return index

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; nothing is added. The spelling of an added token becomes that token's id."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise ValueError(
                f"cannot encode {_shorten(text)}; expected a str that is valid Unicode (no lone surrogates); "
                "decode the input as UTF-8 first"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD. ValueError for an unknown id."""
        for index in ids:
            self._check(index)
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that one id stands for; a character may be spread over several ids."""
        piece = self._check(index)
        try:
            return bytes(_BYTE_OF[character] for character in piece)
        except KeyError:
            # An added token is stored as plain text, so it can hold characters outside the byte alphabet.
            return piece.encode("utf-8")

    def _check(self, index: int) -> str:
        piece = self._backend.id_to_token(index) if 0 <= index < PAST_IDS else None
        if piece is None:
            raise ValueError(f"token id {index} is not in {self.source}; expected 0 to {self._largest_id}")
        return piece


def _shorten(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
