"""Ragged training examples, and the fixed token budget that they are packed into.

An `Example` is one corrupted document in numpy, made off the training thread; a `Pack` is several of them as
tensors, with block-diagonal attention, so that no token of one sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.layout import Layout
from oneflow_core.model.attention import AttentionPlan
from oneflow_core.model.inputs import ModelInputs, to_device

Float32 = NDArray[np.float32]


@dataclass
class Example:
    """One corrupted document. Shapes as in `layout`; K elements to predict, C corruptions."""

    layout: Layout
    count_S: NDArray[np.int64]
    """Elements to predict at each slot: those missing right of it, or the one that comes next."""
    pair_slot_K: NDArray[np.int64]
    """Slot of each of them, ascending."""
    pair_token_K: NDArray[np.int64]
    noisy_ND: Float32
    clean_ND: Float32
    noise_ND: Float32
    time_N: Float32
    patch_grid_N2: NDArray[np.int64]
    feature_MD: Float32
    feature_grid_M2: NDArray[np.int64]
    copy_S: NDArray[np.int64]
    """Corruption that each slot belongs to."""
    clock_C: NDArray[np.float64]
    """The text clock tau of each corruption, for losses by time."""
    weight_C: NDArray[np.float64]
    """Weight of each corruption's text loss."""
    text_targets: int
    """Target tokens of the clean document, kept or not, once for each corruption: what the text loss is divided by,
    summed over the batch."""
    causal: bool = False
    """Whether an element sees nothing after itself."""
    spurious_S: NDArray[np.int64] | None = None
    """Whether each slot's own element does not belong to the document: 1 or 0, -1 where nobody asks; None: nowhere."""
    doc_id: str = ""
    """Of the document that it was made of, where whoever made it says so."""
    task: str = ""
    """What is asked for, as `objectives.tasks.Task.name`."""

    @property
    def flow_N(self) -> NDArray[np.bool_]:
        """Patches whose image is still in flow (t_img < 1); only they have an image loss (METHOD 7.6)."""
        flow: NDArray[np.bool_] = self.time_N < 1
        return flow

    @property
    def length(self) -> int:
        """Tokens of the corrupted document, patches and features included."""
        return len(self.layout.token_T)


@dataclass
class Pack:
    """Several examples as one flat sequence; the unit that a model steps on."""

    inputs: ModelInputs
    count_S: Tensor
    clean_ND: Tensor
    noise_ND: Tensor
    flow_N: Tensor
    clock_S: Tensor
    """Text clock of each slot's document."""
    clock_K: Tensor
    """Text clock of each missing token's document."""
    weight_S: Tensor
    """Weight of each slot's text loss, float32."""
    weight_K: Tensor
    """Weight of each missing token's loss, float32."""
    text_targets: int
    texts: int
    """Corruptions of documents with text targets."""
    documents: int
    spurious_S: Tensor | None = None
    """As in `Example`."""
    doc_ids: tuple[str, ...] = ()
    """Documents in the order of the pack."""
    tasks: tuple[str, ...] = ()
    """Task of each document, in the order of `inputs.attention.document_T`."""

    @property
    def tokens(self) -> int:
        """Tokens in the pack, patches and features included."""
        return len(self.inputs.token_T)

    def to(self, device: torch.device | str) -> Pack:
        """A copy on `device`."""
        return to_device(self, device)


def collate(examples: Sequence[Example]) -> Pack:
    """Joins examples into one pack.

    Raises:
        ValueError: no example at all.
    """
    if not examples:
        raise ValueError("a pack needs at least one example")
    lengths_B = np.array([e.length for e in examples], np.int64)
    token_start_B = np.cumsum(lengths_B) - lengths_B
    slots_B = np.array([len(e.count_S) for e in examples], np.int64)
    slot_start_B = np.cumsum(slots_B) - slots_B
    count_S = np.concatenate([e.count_S for e in examples])
    logit_slot_R = np.flatnonzero(count_S)
    pair_slot_K = _join([e.pair_slot_K for e in examples], slot_start_B)
    inputs = ModelInputs(
        token_T=_tensor(_join([e.layout.token_T for e in examples])),
        position_T=_tensor(_join([e.layout.position_T for e in examples])),
        prompt_T=_tensor(_join([e.layout.prompt_T for e in examples]).astype(np.float32)),
        text_time_T=_tensor(np.concatenate([_text_times(e) for e in examples])),
        attention=_attention(examples, lengths_B),
        slot_S=_tensor(_join([e.layout.slot_S for e in examples], token_start_B)),
        patch_N=_tensor(_join([e.layout.patch_N for e in examples], token_start_B)),
        noisy_ND=_tensor(_join([e.noisy_ND for e in examples])),
        time_N=_tensor(_join([e.time_N for e in examples])),
        patch_grid_N2=_tensor(_join([e.patch_grid_N2 for e in examples])),
        feature_M=_tensor(_join([e.layout.feature_M for e in examples], token_start_B)),
        feature_MD=_tensor(_join([e.feature_MD for e in examples])),
        feature_grid_M2=_tensor(_join([e.feature_grid_M2 for e in examples])),
        logit_slot_R=_tensor(logit_slot_R),
        pair_row_K=_tensor(np.searchsorted(logit_slot_R, pair_slot_K)),
        pair_token_K=_tensor(_join([e.pair_token_K for e in examples])),
    )
    clock_S = np.concatenate([e.clock_C[e.copy_S] for e in examples]).astype(np.float32)
    weight_S = np.concatenate([e.weight_C[e.copy_S] for e in examples]).astype(np.float32)
    return Pack(
        inputs,
        _tensor(count_S),
        _tensor(_join([e.clean_ND for e in examples])),
        _tensor(_join([e.noise_ND for e in examples])),
        _tensor(_join([e.flow_N for e in examples])),
        _tensor(clock_S),
        _tensor(clock_S[pair_slot_K]),
        _tensor(weight_S),
        _tensor(weight_S[pair_slot_K]),
        sum(e.text_targets for e in examples),
        sum(len(e.clock_C) for e in examples if e.text_targets),
        len(examples),
        _spurious(examples),
        doc_ids=tuple(e.doc_id for e in examples),
        tasks=tuple(e.task for e in examples),
    )


def _spurious(examples: Sequence[Example]) -> Tensor | None:
    parts = [e.spurious_S for e in examples if e.spurious_S is not None]
    return _tensor(np.concatenate(parts)) if len(parts) == len(examples) else None


def _text_times(example: Example) -> Float32:
    """t_text of each token; 1 for a prefix, which all corruptions share."""
    times_C1 = np.append(np.minimum(1.0, example.clock_C), 1.0)
    return times_C1[example.layout.copy_T].astype(np.float32)


def _attention(examples: Sequence[Example], lengths_B: NDArray[np.int64]) -> AttentionPlan:
    order_T = _join([e.layout.element_T for e in examples]) if examples[0].causal else None
    document_T = np.repeat(np.arange(len(examples)), lengths_B)
    return AttentionPlan.of_runs(document_T, _join([e.layout.copy_T for e in examples]), order_T)


def _join(arrays: Sequence[NDArray], offsets: NDArray[np.int64] | None = None) -> NDArray:
    if offsets is not None:
        arrays = [a + o for a, o in zip(arrays, offsets, strict=True)]
    return np.concatenate(arrays)


def _tensor(array: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
