"""Between images and the trunk: latent patches in and out, understanding features in (paper Fig. 23)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from oneflow_core.model.config import ModelConfig


def sinusoids(values_N: Tensor, width: int, longest_period: float = 10_000.0) -> Tensor:
    """Sine and cosine features of real numbers, [N, width], float32."""
    half = width // 2
    frequency = torch.exp(-math.log(longest_period) * torch.arange(half, device=values_N.device) / half)
    angle = values_N.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids of a time in [0, 1] through a small network: [U] -> [U, D]."""

    def __init__(self, width: int, features: int = 128) -> None:
        super().__init__()
        self.features = features
        self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time_U: Tensor) -> Tensor:
        """[U] -> [U, D]."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        return self.layers(sinusoids(time_U * 1000, self.features).to(first.weight.dtype))


class GridEmbedding(nn.Module):
    """A learnt map of 2-D sinusoids, so that any image size has positions: [N, 2] -> [N, D]."""

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.project = nn.Linear(2 * features, width, bias=False)

    def forward(self, grid_N2: Tensor) -> Tensor:
        """(row, column) -> [N, D]."""
        rows, cols = (sinusoids(grid_N2[:, i], self.features, 100.0) for i in (0, 1))
        return self.project(torch.cat((rows, cols), dim=-1).to(self.project.weight.dtype))


class PatchAdapter(nn.Module):
    """Noisy latent patches to the trunk's width, with the time added to every patch (Transfusion's linear variant)."""

    def __init__(self, config: ModelConfig, time_features: int = 128) -> None:
        super().__init__()
        self.time_features = time_features
        self.project = nn.Linear(config.patch_dim, config.width)
        self.grid = GridEmbedding(config.width)
        self.time = nn.Sequential(
            nn.Linear(time_features, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )

    def forward(self, noisy_ND: Tensor, time_N: Tensor, grid_N2: Tensor) -> tuple[Tensor, None]:
        """[N, p*p*C], [N], [N, 2] -> [N, D]; nothing goes past the trunk."""
        times, which = time_N.unique(return_inverse=True)
        clock = self.time(sinusoids(times * 1000, self.time_features).to(self.project.weight.dtype))
        return self.project(noisy_ND) + self.grid(grid_N2) + clock[which], None


class FeatureAdapter(nn.Module):
    """Understanding features of prompt images to the trunk's width: a two-layer MLP and grid positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.feature_dim)
        self.project = nn.Sequential(
            nn.Linear(config.feature_dim, config.width), nn.GELU(), nn.Linear(config.width, config.width)
        )
        self.grid = GridEmbedding(config.width)

    def forward(self, feature_MD: Tensor, grid_M2: Tensor) -> Tensor:
        """[M, feature_dim], [M, 2] -> [M, D]."""
        return self.project(self.norm(feature_MD)) + self.grid(grid_M2)
