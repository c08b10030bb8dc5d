"""Random weights for FID's Inception under which pictures give features that differ, and pictures of several sizes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def weights(network: nn.Module) -> dict[str, Tensor]:
    """By numpy's generator, which gives the same numbers everywhere."""
    rng, held = np.random.default_rng(1), {}
    for name, value in sorted(network.state_dict().items()):
        shape = tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            drawn = np.zeros(shape, np.int64)
        elif value.dim() == 4:
            drawn = rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith(("running_mean", "bias")):
            drawn = rng.standard_normal(shape, np.float32) * np.float32(0.1)
        else:
            drawn = 0.9 + 0.4 * rng.random(shape, np.float32)
        held[name] = torch.from_numpy(np.asarray(drawn))
    return held


def pictures() -> list[np.ndarray]:
    """Blocks of colour, uint8 [H, W, 3], smaller and larger than the network's 299 pixels."""
    rng = np.random.default_rng(0)
    sizes = ((8, 8, 32), (4, 6, 16), (50, 40, 8))
    return [
        np.kron(rng.integers(0, 256, (h, w, 3)), np.ones((side, side, 1))).astype(np.uint8)
        for h, w, side in sizes
    ]
