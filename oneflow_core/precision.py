"""What a network of half precision computes wider: rotations, counts, token probabilities and losses."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is float64: a network in double precision stays in it throughout."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
