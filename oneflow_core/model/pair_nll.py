"""The cross entropy of several targets a row, in the memory of the logits alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 256
"""Rows whose exponentials are held at once."""


def pair_nll(logits_RV: Tensor, row_K: Tensor, token_K: Tensor) -> Tensor:
    """-log softmax(logits[row])[token] of each pair, [K], float32.

    Backward writes the gradient over the logits: call it once, and do not read the logits after it.
    """
    nll_K: Tensor = _PairNll.apply(logits_RV, row_K, token_K)
    return nll_K


class _PairNll(torch.autograd.Function):
    """d nll_k / d logits[r] = softmax(logits[r]) - onehot(token_k), for r the row of k."""

    @staticmethod
    def forward(ctx: Any, logits_RV: Tensor, row_K: Tensor, token_K: Tensor) -> Tensor:
        parts = [rows.logsumexp(-1) for rows in logits_RV.split(ROWS)]
        total_R = torch.cat(parts)
        ctx.save_for_backward(logits_RV, total_R, row_K, token_K)
        return total_R[row_K] - logits_RV[row_K, token_K]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grad_K,) = gradients
        logits_RV, total_R, row_K, token_K = ctx.saved_tensors
        weight_R = torch.zeros_like(total_R).index_add_(0, row_K, grad_K)
        grad_RV = logits_RV.sub_(total_R[:, None]).exp_().mul_(weight_R[:, None])
        return grad_RV.index_put_((row_K, token_K), -grad_K, accumulate=True), None, None
