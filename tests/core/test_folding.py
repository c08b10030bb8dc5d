"""Stacks of whole images against `unpatchify`, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.flows.image import unpatchify
from oneflow_core.layout import grid_positions
from oneflow_core.model.folding import Folding

SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=8)


def grid_of(sizes: list[tuple[int, int]]) -> torch.Tensor:
    """(row, column) of every patch of images of these sizes."""
    return torch.from_numpy(
        np.concatenate([np.zeros((0, 2), np.int64), *(grid_positions(*s) for s in sizes)])
    )


@given(SIZES, st.sampled_from([1, 2, 3]), st.integers(1, 3))
@settings(deadline=None)
def test_images_fold_as_unpatchify_says_and_unfold_again(
    sizes: list[tuple[int, int]], patch: int, channels: int
) -> None:
    folding = Folding.build(grid_of(sizes))
    value = torch.randn(sum(r * c for r, c in sizes), patch * patch * channels)
    images = folding.fold(value, patch)
    assert torch.equal(folding.unfold(images, patch), value)
    parts = value.split([r * c for r, c in sizes])
    for stack, image in zip(folding.stacks, images, strict=True):
        size = (stack.rows, stack.cols)
        alone = [unpatchify(p, *size, patch) for p, s in zip(parts, sizes, strict=True) if s == size]
        assert image.shape == (len(alone), channels, stack.rows * patch, stack.cols * patch)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(image, alone, strict=True))
    assert len(folding.stacks) == max(1, len(set(sizes)))


@pytest.mark.parametrize("kept", [[1, 2, 3], [0, 1, 2], [0, 2, 1, 3], [0, 1, 3, 2, 4, 5], [0, 4, 5, 1, 2, 3]])
def test_parts_of_images_and_other_orders_are_refused(kept: list[int]) -> None:
    whole = grid_of([(2, 2), (1, 2)])
    Folding.build(whole)
    with pytest.raises(ValueError, match="give the patches of an image together"):
        Folding.build(whole[kept])
