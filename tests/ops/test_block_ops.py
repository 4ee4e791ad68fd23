"""Hyper-connections, norms, linear layers, routing, experts and sampling against loops written from their
formulas.
"""

from __future__ import annotations

import math

import pytest
import torch

from wellhead.formats import block_fp8
from wellhead.ops.hyper_connection import reference as hyper_connection
from wellhead.ops.linear import reference as linear
from wellhead.ops.moe import reference as moe
from wellhead.ops.norm_quant import reference as norm_quant
from wellhead.ops.routing import reference as routing
from wellhead.ops.sampling import reference as sampling


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


def test_hyper_connection_published_vector() -> None:
    z = torch.sin(torch.arange(24.0)).unsqueeze(0)
    pre, post, comb = hyper_connection.split_mixing(z, torch.zeros(24), torch.tensor([1, 0.5, 2]), 4, 1e-6, 20)
    expected_pre = torch.tensor([0.5000010, 0.6987759, 0.7128574, 0.5352226])
    expected_post = torch.tensor([0.8130251, 0.7647583, 0.9302595, 1.1627854])
    expected_comb = torch.tensor(
        [
            [0.5623536, 0.3279491, 0.0826342, 0.0270613],
            [0.0092542, 0.1160156, 0.6191953, 0.2555345],
            [0.1123151, 0.0540298, 0.1403542, 0.6933007],
            [0.3160762, 0.5020044, 0.1578152, 0.0241025],
        ]
    )
    for found, expected in ((pre, expected_pre), (post, expected_post), (comb, expected_comb)):
        torch.testing.assert_close(found[0], expected, rtol=0, atol=2e-6)


def test_hyper_connection_sites() -> None:
    n, d = 4, 6
    x, fn, base, scale = (
        randn(3, n, d),
        randn(24, n * d, seed=1),
        randn(24, seed=2),
        torch.tensor([0.5, 1, 2]),
    )
    u, post, comb = hyper_connection.pre(x, fn, base, scale, norm_eps=1e-6, hc_eps=1e-6, iterations=20)
    flat = x.flatten(1)
    z = flat @ fn.T / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    weights = torch.sigmoid(z[:, :n] * 0.5 + base[:n]) + 1e-6
    torch.testing.assert_close(u, torch.einsum("tj,tjd->td", weights, x))
    torch.testing.assert_close(comb.sum(1), torch.ones(3, n), atol=1e-4, rtol=0)
    y = randn(3, d, seed=4)
    expected = torch.einsum("tk,td->tkd", post, y) + torch.einsum("tjk,tjd->tkd", comb, x)
    torch.testing.assert_close(hyper_connection.post(y, x, post, comb), expected)
    head = hyper_connection.head(x, fn[:n], base[:n], torch.tensor([0.5]), norm_eps=1e-6, hc_eps=1e-6)
    torch.testing.assert_close(head, u)


def test_rms_norm_multiplies_by_the_weight_and_rounds_once() -> None:
    x, w = randn(3, 8).bfloat16(), randn(8, seed=1).bfloat16()
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(norm_quant.rms_norm(x, None, 1e-6), expected.bfloat16())
    assert torch.equal(norm_quant.rms_norm(x, w, 1e-6), (expected * w.double()).bfloat16())


def test_rounded_input_is_what_the_packed_form_holds() -> None:
    """Amaxima on both sides of a power of two, at the floor, and at zero."""
    x = randn(6, 256) * torch.tensor([1.0, 448, 449, 1e-6, 0, 1e4]).unsqueeze(1)
    x[0, 0], x[1, 0], x[2, 0] = 7.0, 448.0, 449.0
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype)
        expected = block_fp8.dequantize_rows(*block_fp8.quantize_rows(given)).to(dtype)
        assert torch.equal(linear.round_input(given), expected)


def test_linear_and_grouped() -> None:
    x, w = randn(5, 3, 7), randn(4, 7, seed=1)
    torch.testing.assert_close(linear.linear(x, w), x @ w.T)
    groups = randn(3, 4, 7, seed=2)
    found = linear.grouped(x, groups)
    for g in range(3):
        torch.testing.assert_close(found[:, g], x[:, g] @ groups[g].T)


def test_products_of_a_row_do_not_depend_on_its_company() -> None:
    """Bit for bit where the BLAS treats whole tiles alike; elsewhere at least to fp32's rounding."""
    x, w = randn(40, 256), randn(96, 256, seed=1)
    whole = linear.product(x, w)
    for rows in (1, 3, 7, 8, 20):
        torch.testing.assert_close(linear.product(x[:rows], w), whole[:rows], rtol=1e-5, atol=1e-4)
    assert linear.product(x[:0], w).shape == (0, 96)


def test_routing() -> None:
    x, gate, bias = randn(4, 8), randn(6, 8, seed=1), torch.tensor([0.0, 0, 5, 0, 0, 0])
    scores = routing.affinity(x, gate)
    torch.testing.assert_close(scores, (1 + (x @ gate.T).exp()).log().sqrt())
    ids, weights = routing.choose(scores, 2, 2.5, bias)
    assert (ids[:, 0] == 2).all()  # the bias chooses
    own = scores.gather(1, ids)
    torch.testing.assert_close(weights, 2.5 * own / own.sum(1, keepdim=True))  # and does not weigh
    ties, _ = routing.choose(torch.ones(1, 6), 3, 1.0, torch.zeros(6))
    assert ties.tolist() == [[0, 1, 2]]
    table = torch.tensor([[5, 1], [0, 3]])
    ids, weights = routing.choose_by_token(scores, 1.5, table, torch.tensor([1, 0, 1, 0]))
    assert ids.tolist() == [[0, 3], [5, 1], [0, 3], [5, 1]]
    torch.testing.assert_close(weights.sum(1), torch.full((4,), 1.5))


def test_experts() -> None:
    d, m, limit = 8, 6, 0.7
    x = randn(5, d)
    w1, w3, w2 = randn(4, m, d, seed=1), randn(4, m, d, seed=2), randn(4, d, m, seed=3)
    ids = torch.tensor([[0, 3], [3, -1], [-1, -1], [1, 0], [3, 1]])
    weights = randn(5, 2, seed=4)
    found = moe.routed(x, ids, weights, w1, w3, w2, limit, identity)
    for t in range(5):
        expected = torch.zeros(d)
        for e, w in zip(ids[t].tolist(), weights[t], strict=True):
            if e >= 0:
                g, u = (w1[e] @ x[t]).clamp(max=limit), (w3[e] @ x[t]).clamp(-limit, limit)
                expected += w2[e] @ (w * g / (1 + (-g).exp()) * u)
        torch.testing.assert_close(found[t], expected, rtol=1e-4, atol=1e-4)
    assert moe.routed(x[:0], ids[:0], weights[:0], w1, w3, w2, limit, identity).shape == (0, d)


def test_expert_rounds_its_inputs_not_its_weight() -> None:
    """Quantisation sees x and the weighted hidden vector."""
    x, w1, w3, w2 = (
        randn(2, 128),
        randn(128, 128, seed=1) / 8,
        randn(128, 128, seed=2) / 8,
        randn(128, 128, seed=3),
    )
    seen: list[torch.Tensor] = []

    def spy(value: torch.Tensor) -> torch.Tensor:
        seen.append(value)
        return linear.round_input(value)

    weight = torch.tensor([3.0, 0.1])
    moe.expert(x, w1, w3, w2, 10.0, spy, weight)
    a = linear.round_input(x)
    torch.testing.assert_close(seen[1], moe.swiglu(a @ w1.T, a @ w3.T, 10.0) * weight.unsqueeze(1))
    assert torch.equal(seen[0], x) and len(seen) == 2


def draws(logits: torch.Tensor, count: int = 4000, **options: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    ids = [sampling.sample(logits, generator=generator, **settings) for _ in range(count)]  # type: ignore[arg-type]
    return torch.tensor(ids).bincount(minlength=logits.shape[0]) / count


def test_sampling_follows_the_restricted_distribution() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.0])
    probability = logits.softmax(0)
    torch.testing.assert_close(draws(logits), probability, rtol=0, atol=0.03)
    torch.testing.assert_close(draws(logits, temperature=2.0), (logits / 2).softmax(0), rtol=0, atol=0.03)
    # of equals the lower id is in
    top2 = torch.tensor([0, probability[1], probability[2], 0, 0])
    torch.testing.assert_close(draws(logits, top_k=2), top2 / top2.sum(), rtol=0, atol=0.03)
    # 0.54 is not enough, with the next 0.74 is
    torch.testing.assert_close(draws(logits, top_p=0.6), top2 / top2.sum(), rtol=0, atol=0.03)
    assert draws(logits, 50, top_p=1e-9)[1] == 1 and draws(logits, 50, top_k=1)[1] == 1


def test_greedy_takes_the_first_of_equals_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sampling.sample(torch.tensor([1.0, 5.0, 5.0]), 0, 0, 1.0, generator) == 1
    assert torch.equal(generator.get_state(), before)


def test_a_draw_takes_one_number_whatever_the_restriction() -> None:
    states = []
    for top_k, top_p in ((0, 1.0), (3, 1.0), (0, 0.2)):
        generator = torch.Generator().manual_seed(5)
        sampling.sample(randn(50), 0.7, top_k, top_p, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.3), (0, 0.9999), (7, 1.0), (6000, 0.95), (20000, 0.5)])
@pytest.mark.parametrize("scale", [0.01, 4.0], ids=["flat", "peaked"])
def test_a_nucleus_is_that_of_a_sorted_row(top_k: int, top_p: float, scale: float) -> None:
    """Rows with many equal logits, some of them impossible: what is found above a threshold is what a sort finds."""
    logits = (randn(9000) * 8 * scale).round() / 8
    logits[::3] = -torch.inf
    ids, probability = sampling.nucleus(logits, 0.8, top_k, top_p)
    order = torch.sort(logits.double(), descending=True, stable=True)
    wanted = torch.softmax(order.values[: top_k or None] / 0.8, -1)
    wanted = wanted[(wanted > 0) & ((wanted.cumsum(-1) - wanted < top_p) | (top_p == 1))]
    restricted = top_k > 0 or top_p < 1
    found = probability if restricted else probability.sort(descending=True, stable=True).values
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert not restricted or torch.equal(ids, order.indices[: len(wanted)])
    assert torch.equal(ids.sort().values, order.indices[: len(wanted)].sort().values)


def test_logprobs_hold_the_chosen_one() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 0.0], [0.0, 3.0, 1.0]])
    first, second, third = sampling.logprobs(logits, [0, 0, 2], [1, 1, 9])
    assert list(first) == [0, 1] and list(second) == [0] and list(third) == [2, 1, 0]
    total = math.log(1 + math.exp(3) + math.e)
    assert first[0] == pytest.approx(-total) and third == pytest.approx({2: 1 - total, 1: 3 - total, 0: -total})
    assert second[0] == pytest.approx(-math.log(1 + 2 * math.exp(-5)))
