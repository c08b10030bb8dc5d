"""Which tokens are drawn, and whose turn it is: the samplers' common arithmetic."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.sampling.types import SamplerConfig


def guided(values: Tensor | None, guidance_S: NDArray[np.float64]) -> Tensor:
    """(1 + w) of the full copies less w of the weak ones (METHOD section 4).

    Args:
        values: of S full rows, then of the weak rows of those whose w is not 0, in the same order.
        guidance_S: w of each full row.
    """
    assert values is not None
    full = values[: len(guidance_S)]
    (at,) = guidance_S.nonzero()
    if not len(at):
        return full
    shape = (-1, *[1] * (values.ndim - 1))
    w = torch.from_numpy(guidance_S[at]).view(shape)
    more, w = ((1 + w).to(values), w.to(values))
    weak = values[len(guidance_S) : len(guidance_S) + len(at)]
    if len(at) == len(guidance_S):
        return more * full - w * weak
    where = torch.from_numpy(at).to(values.device)
    return full.index_copy(0, where, more * full[where] - w * weak)


def first(
    chosen: NDArray[np.bool_], document: NDArray[np.int64], room_B: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Of the chosen, the first `room_B[b]` of each document b; `document` ascends."""
    rank: NDArray[np.int64] = np.cumsum(chosen) - chosen
    starts = np.searchsorted(document, np.arange(len(room_B)))
    base = np.r_[rank, rank[-1] + chosen[-1] if len(rank) else 0][np.minimum(starts, len(rank))]
    return chosen & (rank - base[document] < room_B[document])


def draw(
    logits_FV: Tensor,
    draws_F: NDArray[np.float64],
    config: SamplerConfig,
    temperature_F: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Inverse-CDF sampling with temperature and top-p: one uniform number a row.

    `temperature_F` is that of each row, None: the config's; rows of 0 take the likeliest token.
    """
    if temperature_F is None:
        temperature_F = np.full(len(draws_F), config.temperature)
    hot_F = temperature_F > 0
    if not hot_F.all() or not len(draws_F):
        token: NDArray[np.int64] = logits_FV.argmax(-1).numpy()
        if hot_F.any():
            token = token.copy()
            token[hot_F] = draw(
                logits_FV[torch.from_numpy(hot_F)], draws_F[hot_F], config, temperature_F[hot_F]
            )
        return token
    warmth_F1 = torch.from_numpy(temperature_F).to(logits_FV)[:, None]
    probability_FV = (logits_FV / warmth_F1).softmax(-1)
    if config.top_p < 1 or probability_FV.shape[-1] <= HEAD:
        return _sorted_draw(probability_FV, draws_F, config.top_p)
    probability, token_FH = probability_FV.topk(HEAD)
    mass, draws = probability.double().cumsum(-1), torch.from_numpy(draws_F)[:, None]
    low, high = (torch.searchsorted(mass, draws * by, right=True) for by in (1 - SLACK, 1 + SLACK))
    token = token_FH.gather(-1, low.clamp(max=HEAD - 1))[:, 0].numpy()
    unsure = ((low != high) | (high >= HEAD))[:, 0]
    if unsure.any():
        token[unsure.numpy()] = _sorted_draw(probability_FV[unsure], draws_F[unsure.numpy()], config.top_p)
    return token


HEAD = 64
"""Tokens in which most draws fall; only the others need all tokens in their order."""
SLACK = 1e-5
"""Most by which probabilities in float32 add up to another number than 1."""


def _sorted_draw(probability_FV: Tensor, draws_F: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    probability, token_FV = probability_FV.double().sort(dim=-1, descending=True)
    mass = probability.cumsum(-1)
    probability = probability.masked_fill(mass - probability >= top_p, 0.0)
    mass = probability.cumsum(-1) / probability.sum(-1, keepdim=True)
    place = torch.searchsorted(mass, torch.from_numpy(draws_F)[:, None], right=True).clamp(
        max=mass.shape[-1] - 1
    )
    return token_FV.gather(-1, place)[:, 0].numpy()
