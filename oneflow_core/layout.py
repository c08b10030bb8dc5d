"""How a state becomes tokens: training and sampling lay documents out by this one code.

An *element* is what insertion works on: a text token, a generated image (its anchor token `<|image|>` followed by
its latent patches) or a prompt image (anchor followed by understanding features). One element, one slot; the slot
of an image is read at its anchor. All arrays are flat over documents, in reading order.

Shapes: E elements, T tokens, S slots, I generated images, N their patches, U prompt images, M their features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

TOKEN, IMAGE, FEATURES = 0, 1, 2


@dataclass
class Elements:
    """The elements of one or several documents; `document_E` must not decrease."""

    document_E: IntArray
    kind_E: IntArray
    """TOKEN, IMAGE or FEATURES."""
    token_E: IntArray
    """Token id; the anchor's id for both kinds of image."""
    block_E: IntArray
    """Index of the image among generated images (IMAGE) or among prompt images (FEATURES), else -1."""
    prompt_E: BoolArray
    """Given, not generated: never corrupted, no loss."""
    slot_E: BoolArray
    """Whether a token may be inserted right of this element."""

    def __len__(self) -> int:
        return len(self.kind_E)

    def take(self, index: IntArray | BoolArray) -> Elements:
        """The elements at `index`, in that order."""
        return Elements(
            self.document_E[index],
            self.kind_E[index],
            self.token_E[index],
            self.block_E[index],
            self.prompt_E[index],
            self.slot_E[index],
        )


@dataclass
class Layout:
    """Where everything stands in the flat token sequence."""

    token_T: IntArray
    document_T: IntArray
    position_T: IntArray
    """Place within the document: RoPE runs over the compressed sequence (METHOD section 5)."""
    prompt_T: BoolArray
    slot_S: IntArray
    patch_N: IntArray
    image_I: IntArray
    """`block_E` of the generated images, in the order in which their patches stand in `patch_N`."""
    feature_M: IntArray
    prompt_image_U: IntArray


def lay_out(elements: Elements, patches_I: IntArray, features_U: IntArray) -> Layout:
    """Expands elements to tokens.

    Args:
        elements: the state.
        patches_I: latent patches of every generated image, indexed by `block_E`.
        features_U: understanding features of every prompt image, indexed by `block_E`.
    """
    image_E, prompt_image_E = elements.kind_E == IMAGE, elements.kind_E == FEATURES
    image_I, prompt_image_U = elements.block_E[image_E], elements.block_E[prompt_image_E]
    length_E = np.ones(len(elements), np.int64)
    length_E[image_E] += patches_I[image_I]
    length_E[prompt_image_E] += features_U[prompt_image_U]
    start_E = np.cumsum(length_E) - length_E
    total = int(length_E.sum())
    element_T = np.repeat(np.arange(len(elements)), length_E)
    anchor_T = np.zeros(total, bool)
    anchor_T[start_E] = True
    kind_T = elements.kind_E[element_T]
    document_T = elements.document_E[element_T]
    first_T = (
        np.flatnonzero(np.r_[True, document_T[1:] != document_T[:-1]]) if total else np.zeros(0, np.int64)
    )
    run_T = np.diff(np.r_[first_T, total])
    return Layout(
        token_T=np.where(anchor_T, elements.token_E[element_T], 0),
        document_T=document_T,
        position_T=np.arange(total) - np.repeat(first_T, run_T),
        prompt_T=elements.prompt_E[element_T],
        slot_S=start_E[elements.slot_E],
        patch_N=np.flatnonzero(~anchor_T & (kind_T == IMAGE)),
        image_I=image_I,
        feature_M=np.flatnonzero(~anchor_T & (kind_T == FEATURES)),
        prompt_image_U=prompt_image_U,
    )


def grid_positions(rows: int, cols: int) -> NDArray[np.int64]:
    """(row, column) of each cell of a grid in row-major order, [rows * cols, 2]."""
    return np.stack(np.divmod(np.arange(rows * cols), cols), axis=1)
