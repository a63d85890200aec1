# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The head of a distribution is that of a stable sort: ties, the ends of mu, and where rounding decides."""

import math
from fractions import Fraction

import pytest
import torch

from trl_tempkd.divergences import DIVERGENCES
from trl_tempkd.likeliest import GROUP, head_mask
from trl_tempkd.temperature import log_softmax


def logits(spread=1.0, size=2000, rows=16, seed=5):
    return torch.randn(rows, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * spread


def sorted_head(log_p, mu):
    """The head by its definition."""
    ordered, index = log_p.exp().sort(dim=-1, descending=True, stable=True)
    fits = ordered.cumsum(-1) <= mu
    fits[..., 0] = True
    return torch.zeros_like(fits).scatter(-1, index, fits)


def check_exactly(log_p, mu, slack):
    """The head is the first tokens of the stable order, as many as fit by exact arithmetic on these probabilities."""
    mask = head_mask(log_p, mu)
    for p, row in zip(log_p.exp().flatten(0, -2), mask.flatten(0, -2), strict=True):
        order = p.sort(descending=True, stable=True).indices
        count = int(row.sum())
        assert count >= 1 and row[order[:count]].all()
        masses = [Fraction(0)]
        for value in p[order].tolist():
            masses.append(masses[-1] + Fraction(value))
        assert count == 1 or masses[count] <= mu + slack
        assert count == len(p) or masses[count + 1] > mu - slack


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("mu", [0, 0.1, 0.5, 0.9, 0.999])
def test_the_head_is_that_of_a_stable_sort(mu, spread, rounded):
    values = logits(spread)
    if rounded:  # bf16 logits are full of ties
        values = values.bfloat16().double()
    if spread == 0:  # all are tied; a number of tokens for which no mass is near mu
        values = values[:, :1999]
    log_p = log_softmax(values)
    assert torch.equal(head_mask(log_p, mu), sorted_head(log_p, mu))


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("mu", [0.1, 0.5, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12])
def test_no_token_is_lost_to_rounding(mu, spread):
    # the uniform row of 2000 tokens has a mass of exactly mu: whatever rounding makes of the sum, its neighbours fit
    check_exactly(log_softmax(logits(spread, rows=2)), mu, slack=1e-13)


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_mu_at_the_mass_of_a_head(count):
    log_p = log_softmax(logits(2.0, rows=1))
    mass = log_p.exp().sort(descending=True).values.cumsum(-1)[0, count - 1].item()
    for mu in (mass, math.nextafter(mass, 0), math.nextafter(mass, 1)):
        check_exactly(log_p, mu, slack=1e-14)
    assert torch.equal(head_mask(log_p, mass - 1e-12).sum(-1), torch.tensor([max(count - 1, 1)]))
    assert torch.equal(head_mask(log_p, mass + 1e-12).sum(-1), torch.tensor([count]))


def test_a_mass_of_exactly_mu_fits():
    log_p = torch.tensor([0.1, 0.5, 0.1, 0.3], dtype=torch.float64).log()
    two = (log_p.exp()[1] + log_p.exp()[3]).item()  # one addition, which rounds in one way
    for mu, head in {
        0.0: [1],
        0.6: [1],
        math.nextafter(two, 0): [1],
        two: [1, 3],
        0.85: [1, 3],
        0.95: [0, 1, 3],
    }.items():
        assert head_mask(log_p, mu).nonzero().flatten().tolist() == head, mu
    for mu in (1, 1.0):
        assert head_mask(log_p, mu).all()


@pytest.mark.parametrize("size", [1, 2, GROUP - 1, GROUP, GROUP + 1, 4 * GROUP])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ties_are_taken_in_their_order(size, dtype):
    """Also where they lie in several of the groups by which they are counted, and behind likelier ones."""
    log_p = torch.full((size,), 1 / size, dtype=torch.float64).log().to(dtype)
    for mu in (0, 0.3, 0.6):
        expected = max(1, math.floor(mu * size))
        if abs(mu * size - round(mu * size)) > 1e-3:  # else rounding decides
            assert head_mask(log_p, mu).nonzero().flatten().tolist() == [*range(expected)]
    if size < 4:
        return
    values = torch.zeros(size, dtype=dtype)
    values[size // 2] = math.log(size)  # half of the mass
    log_p = log_softmax(values)
    head = head_mask(log_p, 0.75)
    others = [i for i in range(size) if i != size // 2][: round(0.25 * (2 * size - 1) - 0.51)]
    assert set(head.nonzero().flatten().tolist()) - {size // 2} == set(others[: int(head.sum()) - 1])
    assert abs(int(head.sum()) - 1 - len(others)) <= 1


def test_rows_of_one_token_and_rows_that_are_masked():
    hot = torch.full((3, 701), -math.inf, dtype=torch.float64)
    hot[torch.arange(3), torch.tensor([0, 300, 700])] = 0
    nothing = torch.full((1, 701), -math.inf, dtype=torch.float64)
    half = logits(3.0, 701, 4).masked_fill(torch.arange(701) % 2 == 0, -math.inf)
    log_p = log_softmax(torch.cat([hot, nothing, half]))
    for mu in (0.0, 0.3, 0.5, 0.9):
        head = head_mask(log_p, mu)
        rows = slice(None) if mu else [0, 1, 2, 4, 5, 6, 7]  # nothing fits but where nothing has a mass
        assert torch.equal(head[rows], sorted_head(log_p, mu)[rows])
        assert not (head & (log_p < -600))[:3].any()
    assert head_mask(log_p, 1.0).all()
    assert head_mask(log_p[:1] * 0 - 1e4, 0).sum() == 1  # no token has a probability, and yet one is the first


def test_any_shape_and_low_precision():
    log_p = log_softmax(logits(3.0, 90, 12))
    whole = head_mask(log_p, 0.5)
    assert torch.equal(head_mask(log_p.view(3, 4, 90), 0.5), whole.view(3, 4, 90))
    assert torch.equal(head_mask(log_p[0], 0.5), whole[0])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check_exactly(log_p[:4].to(dtype).float(), 0.5, slack=1e-5)
        assert head_mask(log_p[:4].to(dtype), 0.5).any(-1).all()


def test_the_ends_of_mu_are_the_two_divergences():
    """With all tokens in the head it is the forward KL; the gradient is that of the weighted sum in any case."""
    p, q = log_softmax(logits(2.0, 50, 4)), log_softmax(logits(2.0, 50, 4, seed=6)).requires_grad_()
    torch.testing.assert_close(DIVERGENCES["adaptive_kl"](p, q, mu=1.0), DIVERGENCES["forward_kl"](p, q))
    gap = (p.exp() - q.exp()).abs().detach()
    share = (gap * sorted_head(p, 0.5)).sum(-1) / gap.sum(-1)
    expected = share * DIVERGENCES["forward_kl"](p, q) + (1 - share) * DIVERGENCES["reverse_kl"](p, q)
    ours = DIVERGENCES["adaptive_kl"](p, q, mu=0.5)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), q)[0] for value in (ours, expected)))
