"""The text flow against another implementation's targets, closed-form optima, and oracle simulations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneflow_core.flows.insertion import fire_probability, insertion_terms, left_neighbours

GOLDEN = Path(__file__).parents[3] / "shared/data/edit_flow/golden_insertion_targets.json"


def test_bags_equal_those_of_an_independent_implementation() -> None:
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is absent")
    cases = json.loads(GOLDEN.read_text())["cases"]
    assert cases
    for case in cases:
        keep = np.array([True, *case["keep"]])
        tokens = np.array([case["bos"], *case["x1"]])
        assert tokens[keep].tolist() == case["x_t"]
        bags: list[list[int]] = [[] for _ in case["x_t"]]
        for slot, token in zip(left_neighbours(keep), tokens[~keep], strict=True):
            bags[slot].append(int(token))
        assert bags == case["missing_tokens_after_each_token"]


@given(st.lists(st.booleans(), max_size=60))
def test_putting_the_bags_back_restores_the_text(keep_rest: list[bool]) -> None:
    keep = np.array([True, *keep_rest])
    tokens = np.arange(len(keep)) + 100
    slots = left_neighbours(keep)
    rebuilt: list[int] = []
    for slot, token in enumerate(tokens[keep]):
        rebuilt += [int(token), *tokens[~keep][slots == slot].tolist()]
    assert rebuilt == tokens.tolist()


def test_a_deleted_first_element_is_refused() -> None:
    with pytest.raises(ValueError, match="BOS must always be kept"):
        left_neighbours(np.array([False, True]))


def test_the_loss_is_least_at_the_empirical_laws() -> None:
    count = torch.tensor([0, 0, 0, 1, 1, 2, 5])
    pi_logit = torch.zeros(1, requires_grad=True)
    log_excess = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([pi_logit, log_excess], max_iter=200, tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        terms = insertion_terms(pi_logit.expand(7), 1 + log_excess.exp().expand(7), count, torch.zeros(0))
        loss = terms.rate + terms.zero
        loss.backward()
        return loss

    optimiser.step(closure)
    assert float(torch.sigmoid(pi_logit)) == pytest.approx(3 / 7, abs=1e-3)
    # Untruncated: the mean of the counts that are not zero, (1 + 1 + 2 + 5) / 4, as the sampler needs (METHOD 7.5).
    assert float(1 + log_excess.exp()) == pytest.approx(9 / 4, abs=1e-3)


def test_terms_against_torch_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(0, 4, (50,), generator=generator)
    logit, rate = torch.randn(50, generator=generator), 1 + torch.rand(50, generator=generator)
    nll = torch.rand(30, generator=generator)
    terms = insertion_terms(logit, rate, count, nll)
    missing = count > 0
    poisson = torch.nn.functional.poisson_nll_loss(
        rate[missing].log(), count[missing].float(), log_input=True, full=False, reduction="sum"
    )
    assert float(terms.rate) == pytest.approx(float(poisson), rel=1e-5)
    bce = torch.nn.functional.binary_cross_entropy(torch.sigmoid(logit), (~missing).float(), reduction="sum")
    assert float(terms.zero) == pytest.approx(float(bce), rel=1e-5)
    assert float(terms.tokens) == pytest.approx(float(nll.sum()), rel=1e-6)
    assert float(terms.rate_regret) >= 0
    at_optimum = insertion_terms(logit, count.clamp(min=1).float(), count, nll)
    assert float(at_optimum.rate_regret) == pytest.approx(0, abs=1e-4)


def test_a_plain_rate_is_least_at_the_mean_count() -> None:
    count = torch.tensor([0, 0, 0, 1, 1, 2, 5])
    log_rate = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_rate], max_iter=200, tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        rate = log_rate.exp().expand(7)
        pi_logit, nonzero = -torch.expm1(rate).log(), rate / -torch.expm1(-rate)
        loss = insertion_terms(pi_logit, nonzero, count, torch.zeros(0), counts="plain")
        assert float(loss.zero) == 0
        loss.rate.backward()
        return loss.rate

    optimiser.step(closure)
    assert float(log_rate.exp()) == pytest.approx(9 / 7, abs=1e-3)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=9))
def test_a_weight_is_as_many_copies(slots: list[tuple[int, int]]) -> None:
    count = torch.tensor([k for k, _ in slots])
    weight = torch.tensor([float(w) for _, w in slots])
    generator = torch.Generator().manual_seed(len(slots))
    logit, rate = (
        torch.randn(len(slots), generator=generator),
        1 + torch.rand(len(slots), generator=generator),
    )
    nll = torch.rand(int(count.sum()), generator=generator)
    copies, weight_m = weight.long(), weight.repeat_interleave(count)
    for counts in ("gated", "plain"):
        weighed = insertion_terms(logit, rate, count, nll, weight, weight_m, counts=counts)
        each = (x.repeat_interleave(copies) for x in (logit, rate, count))
        copied = insertion_terms(*each, nll.repeat_interleave(weight_m.long()), counts=counts)
        for ours, theirs in zip(weighed, copied, strict=True):
            assert float(ours) == pytest.approx(float(theirs), rel=1e-4, abs=1e-4)


def test_gate_and_mean_rules_agree_until_the_rate_saturates() -> None:
    pi, rate = torch.tensor([0.3, 0.3]), torch.tensor([2.0, 8.0])
    rho = torch.tensor([0.25, 0.25])
    gate, mean = (fire_probability(pi, rate, rho, rule) for rule in ("gate", "mean"))
    assert gate.tolist() == pytest.approx([0.35, 0.7])
    assert mean.tolist() == pytest.approx([0.35, 1.0])
    assert fire_probability(torch.ones(3), torch.full((3,), 9.0), torch.ones(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("missing", "steps", "share"),
    [(12, 4, 0.31), (12, 8, 0.002), (64, 12, 0.013), (128, 8, 0.42), (128, 16, 0.003)],
)
def test_an_oracle_leaves_the_share_of_method_7_4(missing: int, steps: int, share: float) -> None:
    """With the true counts, at most one arrival a gap a step leaves the published share unsaid at t = 1."""
    rng, left, runs = np.random.default_rng(missing * steps), 0.0, 200
    for _ in range(runs):
        gaps = np.array([missing])
        for step in range(steps):
            rho = torch.full((len(gaps),), 1 / (steps - step))
            pi = torch.from_numpy((gaps == 0).astype(np.float32))
            rate = torch.from_numpy(np.maximum(gaps, 1).astype(np.float32))
            fires = rng.random(len(gaps)) < fire_probability(pi, rate, rho).numpy()
            first = np.where(fires, rng.integers(0, np.maximum(gaps, 1)), 0)
            pieces = [
                [g] if not f else [int(a), int(g - 1 - a)] for g, f, a in zip(gaps, fires, first, strict=True)
            ]
            gaps = np.array([p for piece in pieces for p in piece])
        left += gaps.sum() / missing / runs
    assert left == pytest.approx(share, abs=0.02)


@given(st.integers(1, 9), st.floats(0, 1), st.floats(0, 1))
def test_fire_rules_are_their_closed_forms(count: int, rho: float, pi: float) -> None:
    """exact: not all of `count` independent arrivals fail; gate and mean agree where rho * count is below 1."""
    args = [torch.tensor([value], dtype=torch.float64) for value in (pi, count, rho)]
    gate, mean, exact = (float(fire_probability(*args, rule)) for rule in ("gate", "mean", "exact"))
    none = sum(math.comb(count, k) * rho**k * (1 - rho) ** (count - k) for k in range(1, count + 1))
    assert exact == pytest.approx((1 - pi) * none, abs=1e-9)
    assert exact <= gate + 1e-12 and mean >= gate - 1e-12
    assert gate <= 1 - pi + 1e-12
    if rho * count <= 1:
        assert gate == pytest.approx(mean, abs=1e-12)
