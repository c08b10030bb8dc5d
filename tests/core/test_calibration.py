"""Calibration: an oracle has none to mend, a skewed one the closed form, and sums are those of a loop."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_core.metrics.calibration import (
    LAMBDA_BINS,
    PI_BINS,
    calibration_error,
    counts_by_prediction,
    curve,
    summary,
)
from tests.core.test_time_bins import scored


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_sums_are_those_of_a_loop_over_gaps() -> None:
    pack, out = scored()
    pack = replace(pack, weight_S=torch.linspace(0.5, 2, len(pack.weight_S)))
    assert out.pi_logit_S is not None and out.rate_S is not None
    wanted = {"pi": np.zeros((3, PI_BINS)), "lambda": np.zeros((3, LAMBDA_BINS)), "total": np.zeros((3, 1))}
    for logit, rate, k, w in zip(
        out.pi_logit_S.tolist(), out.rate_S.tolist(), pack.count_S.tolist(), pack.weight_S.tolist(), strict=True
    ):  # fmt: skip
        pi = 1 / (1 + math.exp(-logit))
        wanted["pi"][:, min(int(pi * 10), 9)] += w, w * pi, w * (k == 0)
        wanted["total"][:, 0] += w, w * (1 - pi) * rate, w * k
        if k:
            wanted["lambda"][:, min(int(2 * math.log2(rate)), 15)] += w, w * rate, w * k
    found = counts_by_prediction(pack, out)
    for name, sums in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), sums, rtol=1e-6, atol=1e-9)


def test_an_oracle_has_no_error_and_lies_on_the_diagonal() -> None:
    """Half of the gaps say 0.25 and one in four of them is empty, half say 0.75; those with more miss 1, 2, 3, 6."""
    pack, out = scored()
    pi = torch.tensor([0.25] * 4 + [0.75] * 4)
    count = torch.tensor([0, 3, 3, 3, 0, 0, 0, 6])
    rate = torch.where(count == 0, torch.tensor(5.0), count.float())
    pack = replace(pack, count_S=count, weight_S=torch.ones(8))
    found = counts_by_prediction(pack, replace(out, pi_logit_S=pi.logit(), rate_S=rate))
    assert summary(found)["pi_error"] == pytest.approx(0, abs=1e-6)
    assert summary(found)["lambda_error"] == 0
    for name in ("pi", "lambda"):
        assert [p["predicted"] for p in curve(found[name])] == pytest.approx(
            [p["observed"] for p in curve(found[name])]
        )
    assert sum(p["weight"] for p in curve(found["lambda"])) == 4


def test_a_skewed_one_has_the_error_of_the_closed_form() -> None:
    """pi says p where the share is q, lambda says a k of k: errors |p - q| and (a - 1) E[k | k > 0]."""
    pack, out = scored()
    count = torch.tensor([0] * 70 + [1] * 20 + [4] * 10)
    p, a = 0.55, 1.5
    predicted = replace(out, pi_logit_S=torch.full((100,), _logit(p)), rate_S=a * count.clamp(min=1).float())
    found = counts_by_prediction(replace(pack, count_S=count, weight_S=torch.ones(100)), predicted)
    told = summary(found)
    assert told["pi_error"] == pytest.approx(0.7 - p, rel=1e-5)
    assert told["lambda_error"] == pytest.approx((a - 1) * (20 + 40) / 30, rel=1e-6)
    assert told["count_ratio"] == pytest.approx((1 - p) * a * (70 + 20 + 40) / 60, rel=1e-5)


def test_an_objective_that_counts_nothing_has_no_calibration_and_no_rows_no_error() -> None:
    pack, out = scored()
    assert counts_by_prediction(pack, replace(out, pi_logit_S=None, rate_S=None)) == {}
    assert set(counts_by_prediction(pack, replace(out, rate_S=None))) == {"pi"}
    assert math.isnan(calibration_error(torch.zeros(3, PI_BINS)))
    assert summary({"pi": torch.zeros(3, PI_BINS), "total": torch.zeros(3, 1)}) == {}
