"""Paired tests against enumeration, closed forms and scipy; intervals against their coverage."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from oneflow_core.metrics.paired import (
    BOOTSTRAP,
    DRAWS,
    MCNEMAR,
    SIGN_FLIP,
    SIGN_FLIP_DRAWN,
    Pairs,
    holm,
    sign_flip,
)

Column = NDArray[np.float64]


def pairs(ours: Column, theirs: Column, groups: list[str] | None = None) -> Pairs:
    return Pairs(np.asarray(ours, float)[:, None], np.asarray(theirs, float)[:, None], groups)


def counted(sums: Column) -> tuple[float, float]:
    """Two-sided and one-sided (small) p-values over every pattern of signs, zeros too."""
    found = [float(np.dot(signs, np.abs(sums))) for signs in product((-1, 1), repeat=len(sums))]
    near = 1e-9
    two = np.mean([abs(value) >= abs(sums.sum()) - near for value in found])
    return float(two), float(np.mean([value <= sums.sum() + near for value in found]))


@given(st.lists(st.integers(-3, 3).map(lambda v: v / 2), min_size=1, max_size=9))
@settings(max_examples=60)
def test_the_sign_flip_test_counts_every_pattern(sums: list[float]) -> None:
    array = np.array(sums)
    two, one = counted(array)
    assert sign_flip(array).p == pytest.approx(two)
    assert sign_flip(array, one_sided=True).p == pytest.approx(one)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
@settings(max_examples=60)
def test_scores_of_0_and_1_give_mcnemars_exact_test(better: int, worse: int, equal: int) -> None:
    count = better + worse
    if count + equal == 0:
        return
    ours = np.r_[np.ones(better), np.zeros(worse), np.ones(equal)]
    theirs = np.r_[np.zeros(better), np.ones(worse), np.ones(equal)]
    found, one = pairs(ours, theirs).test(), pairs(ours, theirs).test_worse(0.0)
    wanted = stats.binomtest(better, count, 0.5) if count else None
    assert found.test == MCNEMAR
    assert found.p == pytest.approx(wanted.pvalue if wanted else 1.0)
    less = stats.binomtest(better, count, 0.5, "less").pvalue if count else 1.0
    assert one.p == pytest.approx(less)


def test_many_different_sizes_are_drawn_as_scipy_draws_them() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.25, 1, 60)
    found = pairs(differences, np.zeros(60)).test()
    wanted = stats.permutation_test(
        (differences, np.zeros(60)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=50_000,
        vectorized=True,
        rng=np.random.default_rng(5),
    )
    spread = (wanted.pvalue * (1 - wanted.pvalue) / DRAWS) ** 0.5
    assert found.test == SIGN_FLIP_DRAWN and abs(found.p - wanted.pvalue) < 5 * spread
    few = pairs(differences[:12], np.zeros(12)).test()
    assert few.test == SIGN_FLIP
    exact = stats.permutation_test(
        (differences[:12], np.zeros(12)),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=10_000,
    )
    assert few.p == pytest.approx(exact.pvalue)


def test_items_of_a_group_are_one_piece_of_evidence() -> None:
    ours, theirs = np.ones(12), np.zeros(12)
    assert pairs(ours, theirs).test().p == pytest.approx(2 / 2**12)
    assert pairs(ours, theirs, [str(i // 4) for i in range(12)]).test().p == pytest.approx(2 / 2**3)
    alone, together = (
        pairs(np.tile([0.0, 1, 2], 8), np.zeros(24), groups).difference()
        for groups in (None, [str(i % 3) for i in range(24)])
    )
    assert alone.value == together.value == pytest.approx(1)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_margin_is_held_against_what_is_worse_in_either_direction() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.normal(0, 1, 200)
    fallen = theirs - 0.3 + rng.normal(0, 0.2, 200)
    for ours, opposite, better in ((fallen, theirs, "higher"), (-fallen, -theirs, "lower")):
        found = pairs(ours, opposite)
        assert found.test_worse(0.1, better).p < 0.001 < 0.999 < found.test_worse(0.5, better).p
        assert pairs(opposite, ours).test_worse(0.1, better).p > 0.999


@pytest.mark.parametrize("together", [0.0, 0.5, 1.0])
def test_at_the_margin_it_refuses_no_oftener_than_alpha(together: float) -> None:
    """Scores of 0 and 1 whose true difference is the margin, where the test is no longer exact; the skewed case of
    `together` = 1 is that ours is never right alone."""
    rng, refused, runs = np.random.default_rng(1), 0, 200
    for _ in range(runs):
        shared, theirs = rng.random(150), rng.random(150)
        ours = np.where(rng.random(150) < together, theirs, shared) < 0.75
        refused += pairs(ours.astype(float), (theirs < 0.8).astype(float)).test_worse(0.05).p < 0.05
    assert stats.binomtest(int(refused), runs, 0.05, "greater").pvalue > 0.001
    assert refused > 0


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(7)
    ours, theirs = rng.random(80), rng.random(80)
    found = pairs(ours, theirs).difference()
    wanted = stats.bootstrap(
        (ours - theirs,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.value == pytest.approx((ours - theirs).mean()) and found.count == 80
    assert found.low == pytest.approx(wanted.low, abs=0.01) and found.high == pytest.approx(
        wanted.high, abs=0.01
    )


def test_a_figure_that_is_no_mean_is_resampled() -> None:
    def ratio(parts: Column) -> float:
        above, below = parts.sum(0)
        return float(above / below)

    rng = np.random.default_rng(0)
    below = rng.integers(5, 15, 100).astype(float)
    ours, theirs = (np.stack([below * f + rng.normal(0, 1, 100), below], 1) for f in (1.3, 1.0))
    found = Pairs(ours, theirs, combine=ratio)
    estimate = found.difference()
    assert (
        estimate.value == pytest.approx(ratio(ours) - ratio(theirs))
        and 0.2 < estimate.low < estimate.high < 0.4
    )
    assert found.test().test == BOOTSTRAP and found.test().p < 0.002
    assert Pairs(ours, ours, combine=ratio).test().p == 1
    assert found.test_worse(0.1).p > 0.99 and Pairs(theirs, ours, combine=ratio).test_worse(0.1).p < 0.01
    # As a mean of one part the same path gives the law of the other.
    plain = Pairs(ours[:, :1], theirs[:, :1])
    same = Pairs(ours[:, :1], theirs[:, :1], combine=lambda parts: float(parts.mean()))
    assert same.difference().low == pytest.approx(plain.difference().low, abs=0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    """Holm by its definition: a hypothesis falls at alpha where all with smaller p fall at alpha / those left."""
    found = holm({str(i): p for i, p in enumerate(p_values)})
    order = np.argsort(p_values, kind="stable")
    for alpha in (0.01, 0.05, 0.2, 0.5):
        fallen = set()
        for rank, index in enumerate(order):
            if p_values[index] * (len(order) - rank) > alpha:
                break
            fallen.add(str(index))
        assert {name for name, p in found.items() if p <= alpha} == fallen


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        Pairs(np.zeros((0, 1)), np.zeros((0, 1)))
    with pytest.raises(ValueError, match="no pairs"):
        Pairs(np.zeros((3, 1)), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="give combine"):
        Pairs(np.zeros((3, 2)), np.zeros((3, 2)))
    assert pairs(np.ones(5), np.ones(5)).test().p == 1
