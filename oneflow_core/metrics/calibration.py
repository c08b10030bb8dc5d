"""Whether the heads mean what they say: predicted against observed counts of missing tokens.

pi is compared with the share of gaps that miss nothing, lambda with the tokens missing in gaps that miss some: at the
optimum of the loss both agree wherever they say the same (METHOD 7.1). Gaps count as the loss weighs them.

Shapes: S slots, B bins of the prediction.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from oneflow_core.objectives.protocol import LossOutput
from oneflow_core.packing import Pack

PI_BINS = 10
"""Bins of equal width of pi."""
LAMBDA_BINS = 16
"""Bins of lambda, two to an octave from 1; the last has all above 181."""


def counts_by_prediction(pack: Pack, out: LossOutput) -> dict[str, Tensor]:
    """Sums of one pack, both on one device: weight, predicted and observed by bin, [3, B] float64. No host sync.

    pi: P(empty) against emptiness, of all gaps. lambda: against the count, of gaps that miss something. total:
    (1 - pi) lambda against the count, of all gaps, in one bin. Those alone that the objective predicts.
    """
    if out.pi_logit_S is None:
        return {}
    pi_S, count_S, weight_S = out.pi_logit_S.double().sigmoid(), pack.count_S.double(), pack.weight_S.double()
    some_S = (count_S > 0).double()
    pi_bin_S = (pi_S * PI_BINS).long().clamp_(0, PI_BINS - 1)
    found = {"pi": _sums(pi_bin_S, pi_S, 1 - some_S, weight_S, PI_BINS)}
    if out.rate_S is not None:
        rate_S = out.rate_S.double()
        lambda_bin_S = (2 * rate_S.log2()).long().clamp_(0, LAMBDA_BINS - 1)
        found["lambda"] = _sums(lambda_bin_S, rate_S, count_S, weight_S * some_S, LAMBDA_BINS)
        found["total"] = _sums(torch.zeros_like(pi_bin_S), (1 - pi_S) * rate_S, count_S, weight_S, 1)
    return found


def calibration_error(sums_3B: Tensor) -> float:
    """Expected calibration error: |mean predicted - mean observed| of the bins, by their weights; nan of nothing."""
    weight_B, predicted_B, observed_B = sums_3B
    return float((predicted_B - observed_B).abs().sum() / weight_B.sum())


def summary(sums: dict[str, Tensor]) -> dict[str, float]:
    """Numbers of a set of gaps that `counts_by_prediction` was summed over; without those that nothing was seen for.

    pi_error is in probability, lambda_error in tokens; count_ratio is predicted by observed tokens, 1 at the optimum.
    """
    found = {f"{name}_error": calibration_error(held) for name, held in sums.items() if name != "total"}
    if "total" in sums:
        _, predicted, observed = sums["total"].sum(1).tolist()
        found["count_ratio"] = predicted / observed if observed else math.nan
    return {name: value for name, value in found.items() if math.isfinite(value)}


def curve(sums_3B: Tensor) -> list[dict[str, Any]]:
    """The calibration curve: weight and means of the bins that have any."""
    rows = sums_3B.T.tolist()
    return [{"weight": w, "predicted": p / w, "observed": o / w} for w, p, o in rows if w > 0]


def _sums(bin_S: Tensor, predicted_S: Tensor, observed_S: Tensor, weight_S: Tensor, bins: int) -> Tensor:
    both_3S = torch.stack([weight_S, weight_S * predicted_S, weight_S * observed_S])
    return both_3S.new_zeros(3, bins).index_add_(1, bin_S, both_3S)
