"""Transfusion's U-Net around the trunk: latents down to one embedding a patch, and hidden states up to latents.

The trunk stands in the U-Net's middle (paper Fig. 23: generation down-sampler, trunk, generation up-sampler). Shapes:
B images of one size, E width of the time's embedding, h x w places at the resolution of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneflow_core.model.adapters import GridEmbedding, TimeEmbedding
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.folding import Folding


@dataclass
class Skips:
    """What the down-sampler leaves for the up-sampler; lists go over the folding's stacks."""

    folding: Folding
    clocks: list[Tensor]
    """Embedded time of each image, [B, E]."""
    maps: list[list[Tensor]]
    """Output of every residual block, first to last, [B, width, h, w]."""


class PlaceNorm(nn.LayerNorm):
    """LayerNorm over the channels of each place of [B, C, h, w]: only convolutions join places, nothing joins images.

    Transfusion, too, has LayerNorm here.
    """

    def forward(self, x_BChw: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return super().forward(x_BChw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two rounds of norm, SiLU, 3x3 convolution, the image's time added between them, and a residual."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = PlaceNorm(inputs), PlaceNorm(outputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x_BChw: Tensor, clock_BE: Tensor) -> Tensor:
        """[B, inputs, h, w], [B, E] -> [B, outputs, h, w]."""
        y_BChw = self.conv_in(F.silu(self.norm_in(x_BChw))) + self.time(clock_BE)[:, :, None, None]
        return self.shortcut(x_BChw) + self.conv_out(F.silu(self.norm_out(y_BChw)))


# Layers lie in a Sequential, whose order they follow. In a ModuleList the trainer would take them for blocks and gather
# each at every call; a rank calls them once for each size of image it has, so ranks would fall out of step.


class UNetDown(nn.Module):
    """Noisy latent patches to the trunk's width: residual blocks, halved until a place is a patch, and positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch, widths = config.patch, config.unet_widths
        time = 4 * widths[0]
        self.time = TimeEmbedding(time)
        self.enter = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            if level:
                layers.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
            layers += [ResidualBlock(width, width, time) for _ in range(config.unet_blocks)]
        self.layers = nn.Sequential(*layers)
        self.project = nn.Linear(widths[-1], config.width)
        self.grid = GridEmbedding(config.width)

    def forward(self, noisy_ND: Tensor, time_N: Tensor, grid_N2: Tensor) -> tuple[Tensor, Skips]:
        """[N, p*p*C], [N], [N, 2] -> [N, D], and what the up-sampler takes.

        Raises:
            ValueError: patches that are not whole images in row-major order.
        """
        folding = Folding.build(grid_N2)
        clocks = [F.silu(self.time(time_N[stack.patch_BP[:, 0]])) for stack in folding.stacks]
        images = folding.fold(noisy_ND, self.patch)
        maps = [self._maps(image, clock) for image, clock in zip(images, clocks, strict=True)]
        cell_ND = folding.unfold([levels[-1] for levels in maps], 1)
        return self.project(cell_ND) + self.grid(grid_N2), Skips(folding, clocks, maps)

    def _maps(self, image_BChw: Tensor, clock_BE: Tensor) -> list[Tensor]:
        x_BChw, maps = self.enter(image_BChw), []
        for layer in self.layers:
            if isinstance(layer, ResidualBlock):
                x_BChw = layer(x_BChw, clock_BE)
                maps.append(x_BChw)
            else:
                x_BChw = layer(x_BChw)
        return maps


class UNetUp(nn.Module):
    """Hidden states of patches to a velocity or a clean latent: the down-sampler's mirror, block to block by skips."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch, widths = config.patch, config.unet_widths
        self.enter = nn.Linear(config.width, widths[-1])
        layers: list[nn.Module] = []
        for level, width in reversed(list(enumerate(widths))):
            layers += [ResidualBlock(2 * width, width, 4 * widths[0]) for _ in range(config.unet_blocks)]
            if level:
                wider = nn.Upsample(scale_factor=2, mode="nearest")
                layers.append(nn.Sequential(wider, nn.Conv2d(width, widths[level - 1], 3, padding=1)))
        self.layers = nn.Sequential(*layers)
        self.norm = PlaceNorm(widths[0])
        self.project = nn.Conv2d(widths[0], config.latent_channels, 3, padding=1)

    def forward(self, hidden_ND: Tensor, skips: Skips) -> Tensor:
        """[N, D] -> [N, p*p*C]."""
        cells = skips.folding.fold(self.enter(hidden_ND), 1)
        parts = zip(cells, skips.clocks, skips.maps, strict=True)
        return skips.folding.unfold([self._image(*part) for part in parts], self.patch)

    def _image(self, x_BChw: Tensor, clock_BE: Tensor, maps: list[Tensor]) -> Tensor:
        unused = iter(reversed(maps))
        for layer in self.layers:
            if isinstance(layer, ResidualBlock):
                x_BChw = layer(torch.cat((x_BChw, next(unused)), dim=1), clock_BE)
            else:
                x_BChw = layer(x_BChw)
        return self.project(F.silu(self.norm(x_BChw)))
