"""Build `tiny`'s byte-level BPE: the published pre-tokeniser with single digits and the published special tokens."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from . import facts, tasks

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
# the published list; True where the published tokenizer marks the token special
SPECIALS = {
    BOS: True,
    EOS: True,
    "<｜▁pad▁｜>": True,
    "<｜fim▁hole｜>": False,
    "<｜fim▁begin｜>": False,
    "<｜fim▁end｜>": False,
    "<｜User｜>": False,
    "<｜Assistant｜>": False,
    "<think>": False,
    "</think>": False,
    "｜DSML｜": False,
    "<｜latest_reminder｜>": False,
    "<｜action｜>": False,
    "<｜query｜>": False,
    "<｜authority｜>": False,
    "<｜domain｜>": False,
    "<｜title｜>": False,
    "<｜read_url｜>": False,
}
_WORDS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_REST = r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus() -> Iterator[str]:
    """Every word the tasks use, repeated until the merges that make it one token are frequent."""
    for word in facts.KEYS + facts.VALUES:
        for _ in range(60):
            yield from (word, f" {word}", f"{word}:")
    for english, chinese in facts.CHINESE:
        for _ in range(20):
            yield from (english, f" {english}", chinese)
    for country, capital in facts.CAPITALS:
        for _ in range(4):
            yield from (country, f" {country}", capital, f" {capital}")
    for text in tasks.every_template():
        for _ in range(60):
            yield text


def build(vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` ids, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(Regex(r"[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
            pre_tokenizers.Split(Regex(_WORDS + _REST), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(name, special=special, normalized=False) for name, special in SPECIALS.items()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} tokens, expected {vocab_size}")
    return tokenizer
