"""The text flow: which tokens are missing where, the loss of the three heads, and when a gap fires.

Paper section 2.1 (eqs. 1-7). A state is a sequence of kept elements; slot i stands for the gap to the right of
kept element i, and its bag A_i holds the deleted elements that belong there, k_i = |A_i|.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.precision import widen

FireRule = Literal["gate", "mean", "exact"]
Counts = Literal["gated", "plain", "free"]

PI_LOGIT_AT_START = 0.6931
"""logit of P(no token missing) = 2/3, its mean over t ~ U[0, 1] (METHOD 7.6)."""
RATE_BIAS_AT_START = 1.8546
"""softplus^-1(2): E[k | k > 0] = 3 over t ~ U[0, 1] (METHOD 7.6)."""
PLAIN_BIAS_AT_START = 0.5413
"""softplus^-1(1): E[k] = 1 over t ~ U[0, 1] (METHOD 7.6)."""
DELETE_LOGIT_AT_START = -2.3026
"""logit of 1/11, the share of spurious elements where there are 0.1 for each that belongs."""


def left_neighbours(keep_E: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each deleted element, the rank among kept elements of the nearest one on its left.

    The first element must be kept (it is BOS or a prompt).

    Raises:
        ValueError: the first element is deleted, so that a bag would have no slot.
    """
    if not keep_E[0]:
        raise ValueError("the first element of a document is deleted; BOS must always be kept")
    (missing_K,) = (~keep_E).nonzero()
    return missing_K - np.arange(1, len(missing_K) + 1)


class InsertionTerms(NamedTuple):
    """Sums over slots of the three terms of eq. 7; `rate_regret` is the count term less its minimum, for monitoring."""

    tokens: Tensor
    rate: Tensor
    zero: Tensor
    rate_regret: Tensor


def insertion_terms(
    pi_logit_S: Tensor,
    rate_S: Tensor,
    count_S: Tensor,
    token_nll_M: Tensor,
    weight_S: Tensor | None = None,
    weight_M: Tensor | None = None,
    counts: Counts = "gated",
) -> InsertionTerms:
    """The loss of the three heads, summed, in float32 at least (paper eqs. 4-7).

    Args:
        pi_logit_S: logit of pi, the probability that the gap misses nothing.
        rate_S: lambda_nonzero >= 1, the expected count of a gap that misses something. Its Poisson loss is not
            truncated, so that its optimum is E[k | k > 0], as the sampler needs (METHOD 7.5).
        count_S: k, missing elements of each gap.
        token_nll_M: -log Q(a) for every missing element; all of a gap's bag, summed, not averaged (METHOD 7.1).
        weight_S: weight of each slot; None: 1.
        weight_M: weight of each missing element; None: 1.
        counts: "gated" as above; "plain" is the Poisson loss of the total rate (1 - pi) lambda_nonzero at every slot,
            without the loss of pi, whose optimum is E[k] (Edit Flows; METHOD 7.1); "free" counts nothing: tokens and
            pi alone, with `deletion_loss` beside them.
    """
    log_rate, pi_logit, nll = widen(rate_S).log(), widen(pi_logit_S), widen(token_nll_M)
    count = count_S.to(log_rate.dtype)
    missing = (count > 0).to(log_rate.dtype)
    weight = torch.ones_like(count) if weight_S is None else weight_S.to(log_rate.dtype)
    tokens = (nll if weight_M is None else nll * weight_M.to(nll.dtype)).sum()
    none = tokens.new_zeros(())
    if counts == "plain":
        log_rate = log_rate + F.logsigmoid(-pi_logit)
        counted, zero = weight, none
    else:
        counted = missing * weight
        zero = F.binary_cross_entropy_with_logits(pi_logit, 1 - missing, weight=weight, reduction="sum")
    if counts == "free":
        return InsertionTerms(tokens, none, zero, none)
    poisson = (log_rate.exp() - count * log_rate) * counted
    least = (count - torch.xlogy(count, count)) * counted
    return InsertionTerms(tokens, poisson.sum(), zero, (poisson - least).sum().detach())


def deletion_loss(delete_logit_S: Tensor, spurious_S: Tensor, weight_S: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of which elements do not belong to the document, summed, in float32; a scalar (ours).

    Args:
        delete_logit_S: logit of the probability that the slot's own element does not belong.
        spurious_S: 1 where it does not, 0 where it does, -1 where nobody asks (prompts, images).
        weight_S: weight of each slot; None: 1.
    """
    weight = (spurious_S >= 0).float()
    return F.binary_cross_entropy_with_logits(
        delete_logit_S.float(),
        spurious_S.clamp(min=0).float(),
        weight=weight if weight_S is None else weight * weight_S.float(),
        reduction="sum",
    )


def fire_probability(pi_S: Tensor, rate_S: Tensor, arrival_S: Tensor, rule: FireRule = "gate") -> Tensor:
    """Probability that one token enters each gap in a step (paper Algorithm 2).

    gate: (1 - pi) min(1, rho lambda). mean: min(1, rho (1 - pi) lambda). They differ only where rho lambda > 1.
    exact: (1 - pi) (1 - (1 - rho)^lambda), that at least one of lambda missing tokens arrives; as only one may enter,
    it leaves more of them out than the others do (METHOD 7.4).
    """
    if rule == "gate":
        return (1 - pi_S) * torch.clamp(arrival_S * rate_S, max=1.0)
    if rule == "exact":
        return (1 - pi_S) * (1 - (1 - arrival_S) ** rate_S)
    return torch.clamp(arrival_S * (1 - pi_S) * rate_S, max=1.0)
