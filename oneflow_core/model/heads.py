"""The heads: is a gap empty, how much it misses, which tokens, and where the image flows (paper Fig. 23)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oneflow_core.flows.insertion import (
    DELETE_LOGIT_AT_START,
    PI_LOGIT_AT_START,
    PLAIN_BIAS_AT_START,
    RATE_BIAS_AT_START,
)
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.pair_nll import pair_nll
from oneflow_core.model.unet import UNetUp
from oneflow_core.precision import widen

LOGIT_ROWS = 4096
"""Slots whose logits are held at once in training; the rest is recomputed, so memory is LOGIT_ROWS * V."""


LEAST_RATE = 1e-6
"""Of a plain Poisson rate, so that its logarithm and its gradient stay finite."""


class InsertionHeads(nn.Module):
    """pi, lambda_nonzero and Q at the slots, and what to take out where counts are free; Q alone for the baselines."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.counts
        outputs = 2 if config.counts == "gated" else 1
        self.count = nn.Linear(config.width, outputs) if config.objective == "oneflow" else None
        deletes = config.objective == "oneflow" and config.counts == "free"
        self.delete = nn.Linear(config.width, 1) if deletes else None
        self.tokens = nn.Linear(config.width, config.vocab_size, bias=False)

    def counts(self, hidden_SD: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """(logit of pi, lambda_nonzero), both [S], float32 (or float64); nothing where the objective counts nothing.

        gated: lambda_nonzero = 1 + softplus of an output of its own. plain: both are those of a Poisson law whose rate
        is the softplus of the only output. free: the only output is that of pi, and lambda_nonzero is 1: without a
        count, a gap that misses something is taken to miss one, and what arrives too late is left to the flush.
        """
        if self.count is None:
            return None, None
        if self.kind == "free":
            pi_logit = self.count(hidden_SD).float().squeeze(-1)
            return pi_logit, torch.ones_like(pi_logit)
        if self.kind == "plain":
            rate = F.softplus(widen(self.count(hidden_SD)).squeeze(-1)).clamp(min=LEAST_RATE)
            some = -torch.expm1(-rate)
            # log(exp(rate) - 1) so written that it is finite above a rate of 88, too.
            return -(rate + some.log()), rate / some
        pi_logit, rate = widen(self.count(hidden_SD)).unbind(-1)
        return pi_logit, 1 + F.softplus(rate)

    def deletions(self, hidden_SD: Tensor) -> Tensor | None:
        """logit that a slot's own element does not belong to the document, [S], float32; None unless free."""
        return None if self.delete is None else self.delete(hidden_SD).float().squeeze(-1)

    def nll(self, hidden_RD: Tensor, row_K: Tensor, token_K: Tensor) -> Tensor:
        """-log Q(token) of each pair, [K], float32 (or float64), without a whole [R, V] tensor.

        Args:
            hidden_RD: hidden states of the slots that miss something.
            row_K: row of each pair, ascending.
            token_K: token of each pair.
        """
        if len(hidden_RD) <= LOGIT_ROWS:
            return self._nll(hidden_RD, row_K, token_K)
        starts = torch.arange(0, len(hidden_RD), LOGIT_ROWS, device=row_K.device)
        cuts = torch.searchsorted(row_K, starts)[1:].tolist()
        chunks = zip(
            hidden_RD.split(LOGIT_ROWS), row_K.tensor_split(cuts), token_K.tensor_split(cuts), strict=True
        )
        return torch.cat(
            [
                checkpoint(self._nll, hidden, rows - i * LOGIT_ROWS, tokens, use_reentrant=False)
                for i, (hidden, rows, tokens) in enumerate(chunks)
            ]
        )

    def _nll(self, hidden_RD: Tensor, row_K: Tensor, token_K: Tensor) -> Tensor:
        return pair_nll(widen(self.tokens(hidden_RD)), row_K, token_K)


class ImageHead(nn.Module):
    """Hidden states of patches to a velocity or a clean latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.width, config.patch_dim)

    def forward(self, hidden_ND: Tensor, skips: None = None) -> Tensor:
        """[N, D] -> [N, p*p*C]; `skips` is for a U-Net."""
        return self.project(hidden_ND)


def start_heads(heads: InsertionHeads, image: ImageHead | UNetUp) -> None:
    """Initial values: counts at their mean under t ~ U[0, 1] (METHOD 7.6), near-uniform tokens, an image of zeros."""
    nn.init.normal_(heads.tokens.weight, std=0.02)
    if heads.count is not None:
        nn.init.zeros_(heads.count.weight)
        start = {
            "gated": [PI_LOGIT_AT_START, RATE_BIAS_AT_START],
            "plain": [PLAIN_BIAS_AT_START],
            "free": [PI_LOGIT_AT_START],
        }
        with torch.no_grad():
            heads.count.bias.copy_(torch.tensor(start[heads.kind]))
    if heads.delete is not None:
        nn.init.zeros_(heads.delete.weight)
        nn.init.constant_(heads.delete.bias, DELETE_LOGIT_AT_START)
    for parameter in image.project.parameters():
        nn.init.zeros_(parameter)
