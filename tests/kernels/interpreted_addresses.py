"""A step's addresses against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from wellhead.ops.addresses import api, reference
from wellhead.ops.addresses.spec import MOST, PAGE, SPEC, WINDOW, make

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WANTED = {ratio: api.Wanted(*of) for ratio, of in MOST.items()}
NAMES = ("positions", "rows", "owners", "page_table", "window_table")


def check(case: dict[str, Any], ends: dict[int, torch.Tensor] | None = None, planned: int | None = None) -> None:
    tokens, pages = len(case["positions"]), case["page_table"].shape[1]
    plan = api.plan(planned or max(tokens, 1), pages + 3, WINDOW, PAGE, WANTED, device=DEVICE)
    for buffer in (plan.integers, plan.small):
        buffer.fill_(-77)
    freqs = dict.fromkeys(MOST, case["freqs"].to(DEVICE))
    given = [case[name].to(DEVICE) for name in NAMES]
    window, entries = plan.run(*given, freqs, ends and {r: e.to(DEVICE) for r, e in ends.items()})
    expected = reference.window(*(case[name].cpu() for name in NAMES), WINDOW, PAGE)
    for found, wanted in zip(window, expected, strict=True):
        assert torch.equal(found.cpu(), wanted)
    for ratio, (most, every) in MOST.items():
        width = -(-pages * (PAGE // ratio) // 16) * 16 if every else 0
        rest = (case["freqs"].cpu(), ends[ratio] if ends else None, ratio, PAGE, most, width)
        of = reference.entries(*(case[name].cpu() for name in NAMES[:4]), *rest)
        for name in ("visible", "chosen", "entry_slots", "slots"):
            assert torch.equal(getattr(entries[ratio], name).cpu(), getattr(of, name)), (ratio, name)
        for found, wanted in ((entries[ratio].cos, of.cos), (entries[ratio].sin, of.sin)):
            assert found.shape == wanted.shape
            assert bool(((found.cpu() - wanted).abs() <= SPEC.error.absolute).all())


def drawn(tokens: int, pages: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    anywhere = torch.randint(0, pages * PAGE, (tokens,), generator=generator)
    return make(tokens, pages, generator, "cpu") | {"positions": anywhere}


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("pages", [1, 9, 300])
def test_decode(tokens: int, pages: int) -> None:
    check(drawn(tokens, pages), planned=tokens + 2)


def test_block_ends_and_the_first_tokens() -> None:
    case = drawn(6, 4)
    case["positions"] = torch.tensor([0, 3, 127, 128, 1023, 255])
    case["owners"] = torch.tensor([5, 0, 1, 2, 3, -1])
    check(case)


def test_prefill_names_the_ends() -> None:
    case = drawn(9, 4)
    case["positions"], case["rows"] = torch.arange(124, 133), torch.zeros(9, dtype=torch.int32)
    case["owners"] = torch.full((9,), 2)
    # right ones, filling, and tokens inside a block; more entries than a decode of as many tokens would have
    check(case, {4: torch.tensor([3, 7, -1, 2], dtype=torch.int32), 128: torch.tensor([3, -1], dtype=torch.int32)})
    check(case, {4: torch.zeros(0, dtype=torch.int32), 128: torch.zeros(0, dtype=torch.int32)})


def test_too_much_is_refused() -> None:
    plan = api.plan(2, 4, WINDOW, PAGE, WANTED, device=DEVICE)
    case = {name: value.to(DEVICE) for name, value in drawn(3, 4).items()}
    with pytest.raises(ValueError, match="3 tokens, 4 pages"):
        plan.run(*(case[name] for name in NAMES), dict.fromkeys(MOST, case["freqs"]))
    case = {name: value.to(DEVICE) for name, value in drawn(2, 4).items()}
    given, short = [case[name] for name in NAMES], dict.fromkeys(MOST, case["freqs"][:31])
    with pytest.raises(ValueError, match=r"freqs\[4\] is .* expected contiguous torch.float32 \(32,\)"):
        plan.run(*given, short)
    with pytest.raises(ValueError, match=r"ends\[4\] is torch.float32 .* expected contiguous torch.int32 \(1,\)"):
        plan.run(*given, dict.fromkeys(MOST, case["freqs"]), dict.fromkeys(MOST, torch.zeros(1, device=DEVICE)))
    with pytest.raises(ValueError, match="window=100"):
        api.plan(2, 4, 100, PAGE, WANTED, device=DEVICE)
    with pytest.raises(ValueError, match=r"\[3\]"):
        api.plan(2, 4, WINDOW, PAGE, {3: api.Wanted(1, False)}, device=DEVICE)
