"""E4M3 by integer arithmetic, as SM80 and SM86 have it: every code, and roundings at every boundary, against torch.

Run by test_interpreter.py, or natively where there is a card.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from wellhead.ops.device_formats import e4m3, e4m3_by_integers, e4m3_bytes, e4m3_bytes_by_integers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def decode(codes, by_integers, by_type, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    byte = tl.load(codes + at)
    tl.store(by_integers + at, e4m3_by_integers(byte).to(tl.float32))
    tl.store(by_type + at, e4m3(byte).to(tl.float32))


@triton.jit
def encode(values, by_integers, by_type, COUNT: tl.constexpr):
    at = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    value = tl.load(values + at)
    tl.store(by_integers + at, e4m3_bytes_by_integers(value))
    tl.store(by_type + at, e4m3_bytes(value))


def test_every_code_has_its_value() -> None:
    codes = torch.arange(256, dtype=torch.int32, device=DEVICE).to(torch.uint8)
    by_integers, by_type = torch.empty(2, 256, device=DEVICE)
    decode[(1,)](codes, by_integers, by_type, COUNT=256)
    exact = codes.view(torch.float8_e4m3fn).float()
    assert exact.isnan().sum() == 2
    number = ~exact.isnan()
    for found in (by_integers, by_type):
        assert torch.equal(found[number].view(torch.int32), exact[number].view(torch.int32))
    assert bool(by_integers[~number].isnan().all())
    assert DEVICE == "cpu" or bool(by_type[~number].isnan().all())  # the interpreter reads 480 there


def test_rounding_at_and_around_every_boundary() -> None:
    codes = torch.arange(0x7F, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (codes[1:] + codes[:-1]) / 2
    edges = torch.cat((codes, middle, torch.tensor([448.0, 463.9, 464.0, 480.0, 1e30, torch.inf, 2.0**-10, 1e-40])))
    bits = edges.view(torch.int32)
    around = torch.cat((bits, bits + 1, (bits - 1).clamp_min(0))).view(torch.float32)
    drawn = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.linspace(-4, 3, 4096)
    values = torch.cat((around, -around, drawn))
    values = values[~values.isnan()]  # one bit above infinity
    values = torch.nn.functional.pad(values, (0, -len(values) % 256)).to(DEVICE)
    by_integers, by_type = torch.empty(2, len(values), dtype=torch.uint8, device=DEVICE)
    encode[(len(values) // 256,)](values, by_integers, by_type, COUNT=256)
    exact = values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    for found in (by_integers, by_type):
        wrong = (found != exact).nonzero().flatten()
        assert not len(wrong), [(float(values[i]), int(found[i]), int(exact[i])) for i in wrong[:5]]
    nan = torch.full((256,), torch.nan, device=DEVICE)
    encode[(1,)](nan, by_integers, by_type, COUNT=256)
    assert bool((by_integers[:256] & 0x7F == 0x7F).all())
