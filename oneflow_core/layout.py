"""How a state becomes tokens: training and sampling lay documents out by this one code.

An *element* is what insertion works on: a text token, a generated image (its anchor token `<|image|>` followed by
its latent patches) or an image that is read, given or finished (anchor followed by understanding features). One
element, one slot; the slot of an image is read at its anchor. All arrays are flat over documents, in reading order.

Shapes: E elements, T tokens, S slots, I generated images, N their patches, U images that are read, M their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneflow_core.ragged import ragged_range, runs

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
    """Index of the image among generated images (IMAGE) or among images that are read (FEATURES), else -1."""
    prompt_E: BoolArray
    """Given, not generated: never corrupted, no loss."""
    slot_E: BoolArray
    """Whether something is predicted at this element: what is missing right of it, or what comes next."""
    copy_E: IntArray
    """Which corruption of the document it belongs to; -1 for a prefix, which all of them share and which sees itself
    alone."""

    def __len__(self) -> int:
        return len(self.kind_E)

    def take(self, index: IntArray | BoolArray) -> Elements:
        """The elements at `index`, in that order."""
        if index.dtype == bool:
            (index,) = index.nonzero()
        return Elements(
            self.document_E.take(index),
            self.kind_E.take(index),
            self.token_E.take(index),
            self.block_E.take(index),
            self.prompt_E.take(index),
            self.slot_E.take(index),
            self.copy_E.take(index),
        )


@dataclass(frozen=True)
class Piece:
    """Text or one image, given or asked for."""

    kind: int
    """TOKEN, IMAGE or FEATURES."""
    prompt: bool
    tokens: Sequence[int] = ()
    """Token ids of a text."""


def clean_elements(
    pieces: Sequence[Piece], bos_id: int, image_id: int, *, text: bool, prefix: bool = False
) -> Elements:
    """One document before corruption: BOS and its pieces, with blocks numbered from 0 in each kind.

    Slots are all elements that are asked for, and those right before such a piece; none unless `text` is asked for.
    With `prefix` the leading prompt pieces stand apart as copy -1, without slots, and a second BOS carries the slot of
    the gap behind them: the prompt cannot see what comes after it.
    """
    leading = next((i for i, p in enumerate(pieces) if not p.prompt), len(pieces)) if prefix else 0
    if not leading:
        return _run(pieces, bos_id, image_id, text, 0)
    shown = sum(p.kind == FEATURES for p in pieces[:leading])
    given = _run(pieces[:leading], bos_id, image_id, False, -1)
    rest = _run(pieces[leading:], bos_id, image_id, text, 0)
    rest.block_E[rest.kind_E == FEATURES] += shown
    return join([given, rest])


def _run(pieces: Sequence[Piece], bos_id: int, image_id: int, text: bool, copy: int) -> Elements:
    tokens: list[Sequence[int]] = [[bos_id]]
    kind_P, block_P, prompt_P, asked_at = [TOKEN], [-1], [True], []
    counts, start = {IMAGE: 0, FEATURES: 0}, 1
    for piece in pieces:
        tokens.append(piece.tokens if piece.kind == TOKEN else [image_id])
        kind_P.append(piece.kind)
        prompt_P.append(piece.prompt)
        block_P.append(counts.get(piece.kind, -1))
        if piece.kind != TOKEN:
            counts[piece.kind] += 1
        if not piece.prompt:
            asked_at.append(start - 1)
        start += len(tokens[-1])
    sizes = [len(t) for t in tokens]
    prompt_E = np.array(prompt_P).repeat(sizes)
    if text:
        slot_E = ~prompt_E
        slot_E[asked_at] = True
    else:
        slot_E = np.zeros(start, bool)
    return Elements(
        np.zeros(start, np.int64),
        np.array(kind_P).repeat(sizes),
        np.concatenate([np.asarray(t, np.int64) for t in tokens]),
        np.array(block_P).repeat(sizes),
        prompt_E,
        slot_E,
        np.full(start, copy),
    )


def join(parts: Sequence[Elements]) -> Elements:
    """Concatenates elements; the document numbers must already be in order."""
    return Elements(
        *(
            np.concatenate([getattr(p, name) for p in parts]).astype(kind)
            for name, kind in (
                ("document_E", np.int64),
                ("kind_E", np.int64),
                ("token_E", np.int64),
                ("block_E", np.int64),
                ("prompt_E", bool),
                ("slot_E", bool),
                ("copy_E", np.int64),
            )
        )
    )


@dataclass
class Layout:
    """Where everything stands in the flat token sequence."""

    token_T: IntArray
    document_T: IntArray
    copy_T: IntArray
    """As `Elements.copy_E`."""
    element_T: IntArray
    """Place of each token's element in the document; the order of causal attention."""
    position_T: IntArray
    """Place within the document, or within the prefix and one copy: RoPE runs over the compressed sequence (METHOD
    section 5)."""
    prompt_T: BoolArray
    slot_S: IntArray
    patch_N: IntArray
    image_I: IntArray
    """`block_E` of the generated images, in the order in which their patches stand in `patch_N`."""
    feature_M: IntArray
    read_image_U: IntArray
    """`block_E` of the images that are read, in the order in which their features stand in `feature_M`."""
    read_copy_U: IntArray
    """`copy_E` of the images that are read."""


def lay_out(elements: Elements, patches_I: IntArray, features_U: IntArray) -> Layout:
    """Expands elements to tokens.

    Args:
        elements: the state.
        patches_I: latent patches of every generated image, indexed by `block_E`.
        features_U: understanding features of every image that is read, indexed by `block_E`.
    """
    if not elements.kind_E.any():
        return _lay_out_tokens(elements)
    image_E, read_E = elements.kind_E == IMAGE, elements.kind_E == FEATURES
    image_I, read_image_U = elements.block_E[image_E], elements.block_E[read_E]
    length_E = np.ones(len(elements), np.int64)
    length_E[image_E] += patches_I[image_I]
    length_E[read_E] += features_U[read_image_U]
    start_E = np.cumsum(length_E) - length_E
    total = int(length_E.sum())
    element_T = np.repeat(np.arange(len(elements)), length_E)
    anchor_T = np.zeros(total, bool)
    anchor_T[start_E] = True
    kind_T = elements.kind_E[element_T]
    document_T, copy_T = elements.document_E[element_T], elements.copy_E[element_T]
    return Layout(
        token_T=np.where(anchor_T, elements.token_E[element_T], 0),
        document_T=document_T,
        copy_T=copy_T,
        element_T=element_T - element_T[_document_starts(document_T)],
        position_T=_positions(document_T, copy_T),
        prompt_T=elements.prompt_E[element_T],
        slot_S=start_E[elements.slot_E],
        patch_N=np.flatnonzero(~anchor_T & (kind_T == IMAGE)),
        image_I=image_I,
        feature_M=np.flatnonzero(~anchor_T & (kind_T == FEATURES)),
        read_image_U=read_image_U,
        read_copy_U=elements.copy_E[read_E],
    )


def _lay_out_tokens(elements: Elements) -> Layout:
    """A state without images is laid out as it stands; long texts are worth the shorter way."""
    none, document_E = np.zeros(0, np.int64), elements.document_E
    (slot_S,) = elements.slot_E.nonzero()
    place_T = position_T = _positions(document_E, elements.copy_E)
    if elements.copy_E.any():
        place_T = _positions(document_E, np.zeros_like(document_E))
    return Layout(
        token_T=elements.token_E,
        document_T=document_E,
        copy_T=elements.copy_E,
        element_T=place_T,
        position_T=position_T,
        prompt_T=elements.prompt_E,
        slot_S=slot_S,
        patch_N=none,
        image_I=none,
        feature_M=none,
        read_image_U=none,
        read_copy_U=none,
    )


def _document_starts(document_T: IntArray) -> IntArray:
    """For each token, the first token of its document."""
    return np.searchsorted(document_T, document_T)


def _positions(document_T: IntArray, copy_T: IntArray) -> IntArray:
    """Places within the document; each copy goes on where the prefix ends."""
    if len(document_T) and document_T[0] == document_T[-1] and not copy_T.any():
        return np.arange(len(document_T))
    start_R, length_R = runs(document_T, copy_T)
    before_R = np.zeros(len(start_R), np.int64)
    prefix_R = copy_T[start_R] < 0
    if prefix_R.any():
        first_R = np.searchsorted(document_T[start_R], document_T[start_R])
        before_R = np.where(~prefix_R & prefix_R[first_R], length_R[first_R], 0)
    return ragged_range(before_R, length_R)


def grid_positions(rows: int, cols: int) -> NDArray[np.int64]:
    """(row, column) of each cell of a grid in row-major order, [rows * cols, 2]."""
    return np.stack(np.divmod(np.arange(rows * cols), cols), axis=1)


def feature_grid(count: int) -> NDArray[np.int64]:
    """Grid positions of `count` understanding features: a square where it is one, else a row."""
    side = int(round(count**0.5))
    return grid_positions(side, side) if side * side == count else grid_positions(1, count)
