"""Routing kernels against the reference. Run by test_interpreter.py, or natively where there is a card."""

from __future__ import annotations

import pytest
import torch

from wellhead.ops.routing import api, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CLOSE = {"rtol": 2e-5, "atol": 2e-6}  # SPEC's budget: two orders of one fp32 sum


def inputs(tokens: int, width: int, experts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=g).bfloat16()
    gate = (torch.randn(experts, width, generator=g) * 3 / width**0.5).bfloat16()
    return x.to(DEVICE), gate.to(DEVICE), torch.randn(experts, generator=g).to(DEVICE)


def outputs(tokens: int, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((tokens, top_k), -99, dtype=torch.int32, device=DEVICE)
    return ids, torch.full((tokens, top_k), torch.nan, device=DEVICE)


@pytest.mark.parametrize(
    ("tokens", "planned", "width", "experts", "top_k"),
    [(1, 1, 512, 256, 6), (17, 64, 256, 384, 6), (3, 3, 256, 8, 2), (66, 100, 256, 40, 8)],
)
def test_top_k_of_biased_affinities(tokens: int, planned: int, width: int, experts: int, top_k: int) -> None:
    x, gate, bias = inputs(tokens, width, experts)
    router = api.plan(planned, width, experts, top_k, 2.5, device=DEVICE)
    ids, weights = outputs(tokens, top_k)
    scores = reference.affinity(x.float(), gate.float())
    want_ids, want_weights = reference.choose(scores, top_k, 2.5, bias)
    for _ in range(2):  # the second run finds the first one's counters
        router.choose(x, gate, bias, ids, weights)
        assert torch.equal(ids.long(), want_ids)
        torch.testing.assert_close(weights, want_weights, **CLOSE)
        assert not router.arrived.any()
    torch.testing.assert_close(router.scores[:tokens], scores, **CLOSE)


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_token_without_an_owner_chooses_nobody(tokens: int) -> None:
    x, gate, bias = inputs(tokens, 256, 40)
    router = api.plan(tokens, 256, 40, 6, 1.5, device=DEVICE)
    (ids, weights), (all_ids, all_weights) = outputs(tokens, 6), outputs(tokens, 6)
    owners = torch.arange(tokens, device=DEVICE) * 3 - 1  # the first is padding
    router.choose(x, gate, bias, all_ids, all_weights)
    router.choose(x, gate, bias, ids, weights, owners)
    assert bool((ids[0] == -1).all()) and bool((weights[0] == 0).all())
    assert torch.equal(ids[1:], all_ids[1:]) and torch.equal(weights[1:], all_weights[1:])
    table = torch.zeros(9, 6, dtype=torch.int32, device=DEVICE) + torch.arange(6, dtype=torch.int32, device=DEVICE)
    router.choose_by_token(x, gate, table, torch.ones_like(owners), ids, weights, owners)
    assert bool((ids[0] == -1).all()) and ids[1:].tolist() == [list(range(6))] * (tokens - 1)


@pytest.mark.parametrize("first", [0, 8])
@pytest.mark.parametrize("by_token", [False, True])
def test_one_token_lists_itself(first: int, by_token: bool) -> None:
    """The blocks of one are those of the lists' own launch, in whatever order; those behind them hold nobody."""
    x, gate, bias = inputs(1, 256, 16)
    router, (ids, weights) = api.plan(1, 256, 16, 6, 1.5, device=DEVICE), outputs(1, 6)
    lists, apart = (api.plan_lists(1, 6, 8, 1, first_expert=first, device=DEVICE) for _ in range(2))
    if by_token:
        table = torch.tensor([[3, 9, 15, 0, 8, 7]], dtype=torch.int32, device=DEVICE)
        token = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        router.choose_by_token(x, gate, table, token, ids, weights, lists=lists)
    else:
        router.choose(x, gate, bias, ids, weights, lists=lists)
    apart.run(ids)
    found, wanted = (
        sorted(zip(of.block_expert.tolist(), of.slots.tolist(), strict=True)) for of in (lists, apart)
    )
    assert found == wanted and any(expert >= 0 for expert, _ in wanted)


@pytest.mark.parametrize("by_token", [False, True])
def test_lists_of_another_size_are_written_whole_or_refused(by_token: bool) -> None:
    """A router of one token over lists of three: what the last run left in them is gone; lists too small stay."""
    x, gate, bias = inputs(1, 256, 16)
    router, (ids, weights) = api.plan(1, 256, 16, 6, 1.5, device=DEVICE), outputs(1, 6)
    table = torch.tensor([[3, 9, 15, 0, 8, 7]], dtype=torch.int32, device=DEVICE)
    token = torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def choose(lists: api.ExpertLists) -> None:
        if by_token:
            router.choose_by_token(x, gate, table, token, ids, weights, lists=lists)
        else:
            router.choose(x, gate, bias, ids, weights, lists=lists)

    large, apart, small = (api.plan_lists(tokens, k, 16, 1, device=DEVICE) for tokens, k in ((3, 6), (3, 6), (1, 2)))
    large.run(torch.arange(18, dtype=torch.int32, device=DEVICE).view(3, 6) % 16)
    choose(large)
    apart.run(ids)
    assert torch.equal(large.slots, apart.slots) and torch.equal(large.block_expert, apart.block_expert)
    with pytest.raises(ValueError, match="ids has 6 elements; the plan was made for at most 2"):
        choose(small)


def test_a_plan_for_more_tokens_fills_the_lists_in_order() -> None:
    x, gate, bias = inputs(3, 256, 16)
    router, (ids, weights) = api.plan(4, 256, 16, 6, 1.5, device=DEVICE), outputs(3, 6)
    lists, apart = (api.plan_lists(4, 6, 16, 2, device=DEVICE) for _ in range(2))
    router.choose(x, gate, bias, ids, weights, lists=lists)
    apart.run(ids)
    for name in ("slots", "counts", "offsets", "block_expert"):
        assert torch.equal(getattr(lists, name), getattr(apart, name))


def test_ties_nan_and_infinite_bias() -> None:
    x, gate, bias = torch.zeros(2, 256).bfloat16().to(DEVICE), inputs(1, 256, 12)[1], torch.zeros(12, device=DEVICE)
    router = api.plan(2, 256, 12, 4, 1.0, device=DEVICE)
    for values, want in (
        ({}, [0, 1, 2, 3]),
        ({5: 1.0, 9: 1.0, 2: -0.0}, [5, 9, 0, 1]),
        ({i: -torch.inf for i in range(1, 12)}, [0, 1, 2, 3]),  # all but one ruled out: the rest in order
        ({7: torch.nan, 3: torch.inf}, [7, 3, 0, 1]),
    ):
        bias.zero_()
        for expert, value in values.items():
            bias[expert] = value
        ids, weights = outputs(2, 4)
        router.choose(x, gate, bias, ids, weights)
        assert ids.tolist() == [want, want], values
        assert torch.equal(weights, torch.full_like(weights, 0.25))


def test_affinity_of_extreme_logits() -> None:
    """softplus keeps its relative precision from e^-80 to 80."""
    z = torch.tensor([-80.0, -30, -17, -5, -1e-3, 0, 1e-3, 3, 19, 21, 80])
    x = torch.zeros(11, 256)
    x[:, 0] = z
    x = x.bfloat16().to(DEVICE)
    gate = torch.zeros(2, 256)
    gate[0, 0] = 1
    router = api.plan(11, 256, 2, 1, 1.0, device=DEVICE)
    router.choose(x, gate.bfloat16().to(DEVICE), torch.zeros(2, device=DEVICE), *outputs(11, 1))
    exact = torch.log1p(x[:, 0].double().exp()).sqrt().float()
    torch.testing.assert_close(router.scores[:, 0], exact, rtol=2e-5, atol=0)


def test_one_bad_token_stays_alone() -> None:
    x, gate, bias = inputs(5, 256, 16)
    router = api.plan(5, 256, 16, 2, 1.0, device=DEVICE)
    clean_ids, clean = outputs(5, 2)
    router.choose(x, gate, bias, clean_ids, clean)
    x[2] = torch.nan
    ids, weights = outputs(5, 2)
    router.choose(x, gate, bias, ids, weights)
    others = [0, 1, 3, 4]
    assert torch.equal(ids[others], clean_ids[others]) and torch.equal(weights[others], clean[others])
    assert ids[2].tolist() == [0, 1]  # in range whatever the values


def test_by_token_reads_only_what_the_table_names() -> None:
    x, gate, _ = inputs(5, 512, 16)
    table = torch.tensor([[3, 5, 0], [15, 3, 3], [-1, 2, 99], [-1, -1, -1]], dtype=torch.int32, device=DEVICE)
    tokens = torch.tensor([1, 0, 2, 3, 0], device=DEVICE)
    router = api.plan(5, 512, 16, 3, 1.5, device=DEVICE)
    ids, weights = outputs(5, 3)
    scores = reference.affinity(x.float(), gate.float())
    want_ids, want = reference.choose_by_token(scores, 1.5, table.clamp(0, 15), tokens)
    gate[[1, 4, 6]] = torch.nan  # nobody's expert
    router.choose_by_token(x, gate, table, tokens, ids, weights)
    assert ids.tolist() == [[15, 3, 3], [3, 5, 0], [-1, 2, -1], [-1, -1, -1], [3, 5, 0]]
    for t in (0, 1, 4):
        assert torch.equal(ids[t].long(), want_ids[t])
        torch.testing.assert_close(weights[t], want[t], **CLOSE)
    torch.testing.assert_close(weights[2], torch.tensor([0, 1.5, 0], device=DEVICE), rtol=1e-6, atol=0)
    assert weights[3].tolist() == [0, 0, 0]
    outside = torch.tensor([-1, 4, 2**40, -(2**62), 0], device=DEVICE)
    router.choose_by_token(x, gate, table, outside, ids, weights)
    assert ids[:4].eq(-1).all() and weights[:4].eq(0).all()
    torch.testing.assert_close(weights[4], want[4], **CLOSE)


def lists(ids: list[int], experts: int, block: int, first: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """(slots without the tail, counts, offsets, expert of each block) in plain Python."""
    slots: list[int] = []
    counts, offsets, owners = [], [0], []
    for e in range(experts):
        own = [i for i, expert in enumerate(ids) if expert == first + e]
        fill = -len(own) % block
        slots += own + [-1] * fill
        owners += [e] * ((len(own) + fill) // block)
        counts.append(len(own))
        offsets.append(len(slots))
    return slots, counts, offsets, owners


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "block", "first", "kind"),
    [
        (1, 6, 40, 16, 0, "random"), (200, 6, 20, 16, 0, "random"), (400, 6, 8, 64, 0, "random"),
        (64, 2, 8, 16, 0, "one expert"), (30, 6, 12, 16, 12, "random"), (9, 6, 5, 8, 0, "nobody"),
        (0, 6, 8, 16, 0, "random"), (64, 6, 3, 1, 0, "random"),
    ],
)  # fmt: skip
def test_lists(tokens: int, top_k: int, experts: int, block: int, first: int, kind: str) -> None:
    g = torch.Generator().manual_seed(tokens)
    ids = torch.randint(-1, first + experts + 3, (tokens, top_k), generator=g, dtype=torch.int32)
    ids = {"random": ids, "one expert": ids * 0 + first + 1, "nobody": ids * 0 - 1}[kind]
    if kind == "random" and tokens:
        ids[0, :2] = torch.tensor([-(2**31), 2**31 - 1])
    plan = api.plan_lists(tokens + 3, top_k, experts, block, first_expert=first, device=DEVICE)
    for tensor in (plan.slots, plan.counts, plan.offsets, plan.block_expert):
        tensor.fill_(-77777)
    plan.run(ids.to(DEVICE))
    slots, counts, offsets, owners = lists(ids.flatten().tolist(), experts, block, first)
    assert plan.counts.tolist() == counts and plan.offsets.tolist() == offsets
    assert plan.slots.tolist() == slots + [-1] * (plan.slots.shape[0] - len(slots))
    assert plan.block_expert.tolist() == owners + [-1] * (plan.block_expert.shape[0] - len(owners))


def test_the_worst_case_fits() -> None:
    """One id for each expert fills a block for each."""
    plan = api.plan_lists(8, 1, 8, 64, device=DEVICE)
    plan.run(torch.arange(8, dtype=torch.int32, device=DEVICE).unsqueeze(1))
    assert plan.offsets[-1] == plan.slots.shape[0] == 512


def test_no_tokens_and_what_is_refused() -> None:
    x, gate, bias = inputs(0, 256, 8)
    router = api.plan(4, 256, 8, 2, 1.0, device=DEVICE)
    router.choose(x, gate, bias, *outputs(0, 2))
    for sizes, reason in (
        ((1, 300, 8, 2), "width=300: a multiple of 256"),
        ((1, 256, 513, 2), "experts=513: 1 to 512"),
        ((1, 256, 8, 9), "top_k=9: 1 to 8 of 8"),
        ((-1, 256, 8, 2), "tokens=-1"),
    ):
        with pytest.raises(ValueError, match=reason):
            api.plan(*sizes, 1.0, device=DEVICE)
    with pytest.raises(ValueError, match="block=48: a power of two"):
        api.plan_lists(1, 6, 8, 48, device=DEVICE)
    x, gate, bias = inputs(5, 256, 8)
    with pytest.raises(ValueError, match="5 tokens; the plan was made for at most 4"):
        router.choose(x, gate, bias, *outputs(5, 2))
    with pytest.raises(ValueError, match=r"x is torch.float32 \(3, 256\)"):
        router.choose(x[:3].float(), gate, bias, *outputs(3, 2))
    with pytest.raises(ValueError, match=r"gate is torch\.float32"):
        router.choose(x[:3], gate.float(), bias, *outputs(3, 2))
