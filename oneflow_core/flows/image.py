"""The image flow: linear paths from noise (t = 0) to data (t = 1) in latent space (paper section 2.2, eqs. 8-9).

Latents are handled as patch tokens [P, p*p*C]; `patchify` and `unpatchify` convert.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.precision import widen

Prediction = Literal["clean", "velocity"]
A = TypeVar("A", NDArray[np.float32], Tensor)


def patchify(latent: A, patch: int) -> A:
    """[C, h, w] -> [h/p * w/p, p*p*C], patches in row-major order.

    Raises:
        ValueError: h or w is no multiple of the patch size.
    """
    channels, height, width = latent.shape
    if height % patch or width % patch:
        raise ValueError(
            f"a latent of {height}x{width} does not divide into patches of {patch}; "
            "resize the images to a multiple of patch size times the codec's downsampling"
        )
    rows, cols = height // patch, width // patch
    grid = latent.reshape(channels, rows, patch, cols, patch)
    order = (1, 3, 2, 4, 0)
    moved = grid.permute(*order) if isinstance(grid, Tensor) else grid.transpose(*order)
    return moved.reshape(rows * cols, patch * patch * channels)


def unpatchify(patches: A, rows: int, cols: int, patch: int) -> A:
    """[rows * cols, p*p*C] -> [C, rows * p, cols * p]; the inverse of `patchify`."""
    grid = patches.reshape(rows, cols, patch, patch, -1)
    order = (4, 0, 2, 1, 3)
    moved = grid.permute(*order) if isinstance(grid, Tensor) else grid.transpose(*order)
    return moved.reshape(-1, rows * patch, cols * patch)


def interpolate(clean: A, noise: A, t: float) -> A:
    """Y_t = t Y_1 + (1 - t) Y_0."""
    return t * clean + (1 - t) * noise


def velocity(prediction_ND: Tensor, noisy_ND: Tensor, t_N: Tensor, kind: Prediction, eps: float) -> Tensor:
    """The velocity that the network means: its output itself, or (Y_1_hat - Y_t) / max(1 - t, eps) (METHOD 12)."""
    if kind == "velocity":
        return prediction_ND
    return (prediction_ND - noisy_ND) / (1 - t_N).clamp(min=eps).unsqueeze(-1)


def flow_error(
    prediction_ND: Tensor,
    clean_ND: Tensor,
    noise_ND: Tensor,
    t_N: Tensor,
    kind: Prediction,
    eps: float,
    space: Prediction = "velocity",
) -> Tensor:
    """Squared error of each patch token, mean over its dimensions, [N], float32 (float64 for such a prediction).

    `space` velocity is the paper's loss. `space` clean measures the same error on the clean latent, (1 - t)^2 times
    it: weight moves from the last details to high noise, where the layout is decided.
    For a clean-latent network both velocities use the same clamp, so a perfect Y_1_hat has zero loss at every t.
    """
    prediction_ND = widen(prediction_ND)
    left_N1 = (1 - t_N).unsqueeze(-1)
    if kind == "velocity":
        error = prediction_ND - (clean_ND - noise_ND)
        return (error if space == "velocity" else error * left_N1).square().mean(-1)
    error = prediction_ND - clean_ND
    return (error if space == "clean" else error / left_N1.clamp(min=eps)).square().mean(-1)


def euler_step(noisy_ND: Tensor, velocity_ND: Tensor, t_N: Tensor, step_N: Tensor) -> tuple[Tensor, Tensor]:
    """One explicit Euler step of at most `step_N`, never past t = 1; returns (Y, t)."""
    d = torch.minimum(step_N, 1 - t_N)
    return noisy_ND + d.unsqueeze(-1) * velocity_ND, t_N + d
