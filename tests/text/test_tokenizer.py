"""The tokenizer against the published ids, and its errors on damaged folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from wellhead.text.tokenizer import Tokenizer
from wellhead.text.tokenizer_files import TokenizerFileError

GOLDEN = {
    "Hello, world.": [19923, 14, 2058, 16],
    "?": [33],
    "Explain in one paragraph why DSv4 sparse MLA reduces KV bandwidth.": [
        *(65106, 295, 834, 15363, 3939, 30941, 88, 22, 50594, 82101, 18749, 126664, 34393, 16)
    ],
    "Line 1\n\tindented\nLine 3\r\nCRLF": [
        *(9038, 223, 19, 201, 200, 655, 19686, 201, 9038, 223, 21, 204, 201, 8002, 68688)
    ],
    "": [],
}


@pytest.mark.parametrize("text", GOLDEN)
def test_encode_gives_published_ids(published: Tokenizer, text: str) -> None:
    assert published.encode(text) == GOLDEN[text]
    assert published.decode(GOLDEN[text]) == text


def test_special_tokens_of_the_published_tokenizer(published: Tokenizer) -> None:
    assert published.bos_id == published.special("<｜begin▁of▁sentence｜>") == 0
    assert published.eos_ids == {1}
    names = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜")
    assert [published.special(name) for name in names] == [128803, 128804, 128821, 128822, 128825]


def test_encode_adds_nothing_and_reads_added_tokens(published: Tokenizer) -> None:
    assert published.encode("<｜begin▁of▁sentence｜>?<｜end▁of▁sentence｜>") == [0, 33, 1]


def test_decode_shows_added_tokens(published: Tokenizer) -> None:
    ids = [0, 33, published.special("<think>"), 1]
    assert published.decode(ids) == "<｜begin▁of▁sentence｜>?<think><｜end▁of▁sentence｜>"


@pytest.mark.parametrize(
    "text", ["深度求索，中文。", "🧑🏽‍🚀 naïve\t\u0000", " leading", "ｆｕｌｌ　width", "a\r\n\r\n b "]
)
def test_round_trip(published: Tokenizer, byte_tokenizer: Tokenizer, text: str) -> None:
    for tokenizer in (published, byte_tokenizer):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_token_bytes_cover_the_text(published: Tokenizer) -> None:
    text = "多字节 🧑🏽‍🚀 <｜User｜><think>x"
    assert b"".join(map(published.token_bytes, published.encode(text))) == text.encode()


def test_missing_special_token_is_named(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json: no added token '<｜User｜>'"):
        byte_tokenizer.special("<｜User｜>")
    # An ordinary piece is not a special token.
    with pytest.raises(ValueError, match="no added token 'a'"):
        byte_tokenizer.special("a")


def test_ids_outside_the_vocabulary_are_refused(byte_tokenizer: Tokenizer) -> None:
    for bad in (259, -1, 2**40):
        with pytest.raises(ValueError, match=rf"token id {bad} is not in .*expected 0 to 258"):
            byte_tokenizer.decode([65, bad])


def test_lone_surrogate_is_refused(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"cannot encode 'a\\ud800'.*valid Unicode"):
        byte_tokenizer.encode("a\ud800")


def test_eos_ids_join_generation_config(byte_folder: Path) -> None:
    (byte_folder / "config.json").write_text('{"eos_token_id": 3, "bos_token_id": 257}')
    assert Tokenizer.from_folder(byte_folder).eos_ids == {256, 3}
    (byte_folder / "generation_config.json").write_text('{"eos_token_id": [256, 258]}')
    tokenizer = Tokenizer.from_folder(byte_folder)
    assert tokenizer.eos_ids == {256, 258}
    assert tokenizer.bos_id == 257


def test_begin_token_is_optional_and_end_token_is_not(byte_folder: Path) -> None:
    (byte_folder / "tokenizer_config.json").write_text('{"eos_token": "<end｜>", "bos_token": null}', encoding="utf-8")
    assert Tokenizer.from_folder(byte_folder).bos_id is None
    (byte_folder / "tokenizer_config.json").unlink()
    with pytest.raises(TokenizerFileError, match=r"no end-of-sequence token found; expected `eos_token`"):
        Tokenizer.from_folder(byte_folder)


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        (
            "tokenizer_config.json",
            {"eos_token": "<gone>"},
            r"tokenizer_config\.json: eos_token '<gone>' is not in",
        ),
        (
            "generation_config.json",
            {"eos_token_id": 999},
            r"generation_config\.json: eos_token_id 999 is not an id",
        ),
        ("config.json", {"eos_token_id": 2**40}, r"config\.json: eos_token_id 1099511627776 is not an id"),
        ("config.json", {"eos_token_id": "1"}, r"config\.json: eos_token_id '1' is not an id"),
        ("config.json", {"bos_token_id": 5}, r"different begin tokens, ids \[5, 257\]"),
        ("config.json", [1], r"config\.json: holds a list; expected a JSON object"),
    ],
)
def test_configuration_that_does_not_fit(byte_folder: Path, file: str, value: object, message: str) -> None:
    (byte_folder / file).write_text(json.dumps(value))
    with pytest.raises(TokenizerFileError, match=message):
        Tokenizer.from_folder(byte_folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read it"),
        (b"", "not a tokenizer"),
        (b'{"version": "1.0", "added_tok', "not a tokenizer"),
        (b"\xff\xfe", "cannot read it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
    ],
)
def test_damaged_tokenizer_file(byte_folder: Path, content: bytes | None, message: str) -> None:
    file = byte_folder / "tokenizer.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(TokenizerFileError, match=message) as error:
        Tokenizer.from_folder(byte_folder)
    assert str(file) in str(error.value)


def test_damaged_configuration_file(byte_folder: Path) -> None:
    (byte_folder / "generation_config.json").write_text("{")
    with pytest.raises(TokenizerFileError, match=r"generation_config\.json: not JSON"):
        Tokenizer.from_folder(byte_folder)


def test_other_kind_of_tokenizer_is_refused(byte_folder: Path) -> None:
    backend = json.loads((byte_folder / "tokenizer.json").read_text(encoding="utf-8"))
    backend["decoder"] = {"type": "Fuse"}
    (byte_folder / "tokenizer.json").write_text(json.dumps(backend))
    with pytest.raises(TokenizerFileError, match="decoder Fuse; expected ByteLevel"):
        Tokenizer.from_folder(byte_folder)


def test_settings_in_the_file_do_not_change_prompts(byte_folder: Path) -> None:
    file = str(byte_folder / "tokenizer.json")
    backend = Backend.from_file(file)
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.post_processor = processors.TemplateProcessing("<begin> $A", None, [("<begin>", 257)])
    backend.save(file)
    assert len(Tokenizer.from_folder(byte_folder).encode("abcd")) == 4
