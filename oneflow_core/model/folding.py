"""The patches of a pack, flat over its images, as stacks of whole images, and back.

Shapes: N patches of the pack, B images of one size with P = rows * cols patches each, p side of a patch, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.layout import grid_positions


@dataclass(frozen=True)
class Stack:
    """The images of one size."""

    rows: int
    cols: int
    patch_BP: Tensor
    """Index into the pack's patches, row-major within an image, int64."""


@dataclass(frozen=True)
class Folding:
    """Where each patch of a pack stands in stacks of images of one size.

    A pack without images has one stack of no images, so that the layers that fold run on it too.
    """

    stacks: list[Stack]
    restore_N: Tensor
    """Where each patch of the pack stands in the concatenation of all stacks' patches."""

    @classmethod
    def build(cls, grid_N2: Tensor) -> Folding:
        """Reads images and their sizes off the (row, column) of each patch: an image begins at every (0, 0).

        Raises:
            ValueError: patches that are not whole images in row-major order.
        """
        grid = grid_N2.cpu().numpy()
        start_I, size_I2 = _images(grid)
        sizes = np.unique(size_I2, axis=0) if len(grid) else np.ones((1, 2), np.int64)
        stacks = []
        for rows, cols in sizes.tolist():
            first_B = start_I[(size_I2 == (rows, cols)).all(axis=1)]
            index_BP = torch.from_numpy(first_B[:, None] + np.arange(rows * cols))
            stacks.append(Stack(rows, cols, index_BP.to(grid_N2.device)))
        return cls(stacks, torch.cat([s.patch_BP.flatten() for s in stacks]).argsort())

    def fold(self, value_ND: Tensor, p: int) -> list[Tensor]:
        """[N, p*p*C] -> [B, C, rows*p, cols*p] a stack, as `unpatchify` does; channels last in memory."""
        images = []
        for stack in self.stacks:
            cells = value_ND[stack.patch_BP].unflatten(1, (stack.rows, stack.cols)).unflatten(-1, (p, p, -1))
            images.append(cells.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2))
        return images

    def unfold(self, images: Sequence[Tensor], p: int) -> Tensor:
        """[B, C, rows*p, cols*p] a stack -> [N, p*p*C]; the inverse of `fold`."""
        values = []
        for stack, image in zip(self.stacks, images, strict=True):
            cells = image.permute(0, 2, 3, 1).unflatten(2, (stack.cols, p)).unflatten(1, (stack.rows, p))
            values.append(cells.transpose(2, 3).flatten(3).flatten(0, 2))
        return torch.cat(values)[self.restore_N]


def _images(grid_N2: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First patch, and rows and columns, of each image."""
    start_I = np.flatnonzero((grid_N2 == 0).all(axis=1))
    size_I2 = grid_N2[np.r_[start_I, len(grid_N2)][1:] - 1] + 1
    whole = [grid_positions(rows, cols) for rows, cols in size_I2.tolist()]
    if not np.array_equal(np.concatenate([grid_N2[:0], *whole]), grid_N2):
        raise ValueError(
            f"{len(grid_N2)} patches in {len(start_I)} images are not whole rows by columns; "
            "give the patches of an image together, in row-major order, from (0, 0) on"
        )
    return start_I, size_I2
