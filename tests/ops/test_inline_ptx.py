"""The kernels' inline assembly, which the interpreter has no use for, run word by word against torch's formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from fakes import ptx
from wellhead.formats import e2m1
from wellhead.ops import device_formats

BYTES = np.arange(256, dtype=np.uint8)
WORDS = np.random.default_rng(0).permutation(np.tile(BYTES, 16)).view(np.uint32)  # every byte in every place


def low_and_high() -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 values of the two E2M1 codes of each byte, in memory's order."""
    codes = torch.from_numpy(WORDS.view(np.uint8).copy())
    values = e2m1.decode(torch.arange(16, dtype=torch.uint8))
    return values[(codes & 15).long()], values[(codes >> 4).long()]


def halves(*words: np.ndarray) -> torch.Tensor:
    """fp32 of f16 pairs, two words to four bytes of the argument."""
    return torch.from_numpy(np.stack(words, axis=1).reshape(-1).view(np.float16).astype(np.float32))


def e4m3(words: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(words.view(np.uint8).copy()).view(torch.float8_e4m3fn).float()


def test_e4m3_becomes_f16_of_the_same_value() -> None:
    found = halves(*ptx.run(device_formats._HALVES.value, 2, WORDS))
    expected = torch.from_numpy(WORDS.view(np.uint8).copy()).view(torch.float8_e4m3fn).float()
    number = ~expected.isnan()
    assert torch.equal(found[number].view(torch.int32), expected[number].view(torch.int32))  # signs of zeros too
    assert int((~number).sum()) == 32 and bool(found[~number].isnan().all())


def test_e2m1_becomes_what_a_product_takes() -> None:
    low, high = low_and_high()
    first, second = ptx.run(device_formats._WIDEN.value, 2, WORDS)
    assert torch.equal(e4m3(first) * 2.0**6, low) and torch.equal(e4m3(second) * 2.0**6, high)
    a, b, c, d = ptx.run(device_formats._WIDEN_HALVES.value, 4, WORDS)
    assert torch.equal(halves(a, b) * 2.0**14, low) and torch.equal(halves(c, d) * 2.0**14, high)


def test_words_of_e2m1_become_codes_in_their_order() -> None:
    """Two 16-bit words of four codes, lowest first."""
    low, high = low_and_high()
    a, b = ptx.run(device_formats._WIDEN_WORDS.value, 2, WORDS)
    found = e4m3(np.stack((a, b), axis=1).reshape(-1)) * 2.0**6
    assert torch.equal(found, torch.stack((low, high), dim=1).flatten())


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(ValueError, match=r"lop3\.b32 is not known here"):
        ptx.run("{ lop3.b32 $0, $1, $1, $1, 0xE8; }", 1, WORDS)
