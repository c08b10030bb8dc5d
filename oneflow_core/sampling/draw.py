"""Which tokens are drawn, and whose turn it is: the samplers' common arithmetic."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.sampling.types import SamplerConfig


def guided(values: Tensor | None, full: int, w: float) -> Tensor:
    """(1 + w) of the full copies less w of the weak ones, which follow in the same order (METHOD section 4)."""
    assert values is not None
    return values[:full] if not w else (1 + w) * values[:full] - w * values[full : 2 * full]


def first(
    chosen: NDArray[np.bool_], document: NDArray[np.int64], room_B: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Of the chosen, the first `room_B[b]` of each document b; `document` ascends."""
    rank: NDArray[np.int64] = np.cumsum(chosen) - chosen
    starts = np.searchsorted(document, np.arange(len(room_B)))
    base = np.r_[rank, rank[-1] + chosen[-1] if len(rank) else 0][np.minimum(starts, len(rank))]
    return chosen & (rank - base[document] < room_B[document])


def draw(logits_FV: Tensor, draws_F: NDArray[np.float64], config: SamplerConfig) -> NDArray[np.int64]:
    """Inverse-CDF sampling with temperature and top-p: one uniform number a row."""
    if config.temperature == 0 or not len(draws_F):
        return logits_FV.argmax(-1).numpy()
    probability, token = (logits_FV / config.temperature).softmax(-1).double().sort(dim=-1, descending=True)
    mass = probability.cumsum(-1)
    probability = probability.masked_fill(mass - probability >= config.top_p, 0.0)
    mass = probability.cumsum(-1) / probability.sum(-1, keepdim=True)
    place = torch.searchsorted(mass, torch.from_numpy(draws_F)[:, None], right=True).clamp(
        max=mass.shape[-1] - 1
    )
    return token.gather(-1, place)[:, 0].numpy()
