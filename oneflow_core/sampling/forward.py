"""From the running batch to network inputs, with the weak copies that guidance compares against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.layout import IMAGE, Elements, grid_positions, lay_out
from oneflow_core.model.inputs import AttentionPlan, ModelInputs, to_device
from oneflow_core.objectives.oneflow import feature_grid
from oneflow_core.sampling.state import State, join


@dataclass
class Batch:
    """One forward pass. `documents` full copies come first, then weak copies."""

    inputs: ModelInputs
    image_I: NDArray[np.int64]
    """Block of each image in the pass, full and weak, in the order of their patches."""
    full_images: int
    """How many of those belong to full copies."""
    slot_element_S: NDArray[np.int64]
    """Element of the state that each slot of a full copy stands for."""
    full_slots: int
    """How many of the slots belong to full copies; the weak copies' follow in the same order, if any."""


def build_batch(state: State, device: torch.device) -> Batch:
    """Lays out the documents that are due, and weak copies where guidance is on.

    The weak copy for image guidance is the image alone after BOS, for text guidance the document without its
    prompt: both are what prompt dropout shows in training. Entropy guidance takes the whole document once more.
    """
    due_E = state.due_B[state.elements.document_E]
    index_E = np.flatnonzero(due_E)
    full = state.elements.take(index_E)
    parts, last, times = [full], len(state.requests), [state.text_time_B]
    if state.config.text_guidance:
        weak_E = ~full.prompt_E | (full.document_E != np.r_[-1, full.document_E[:-1]])
        weak = full.take(weak_E)
        weak.slot_E = _same_slots(full, weak)
        weak.document_E = weak.document_E + last
        parts.append(weak)
        times.append(state.text_time_B)
        last *= 2
    even = len(parts)
    if state.config.image_guidance != 1 and state.config.image_weak == "entropy":
        parts.append(_with_images(state, full, last))
        times.append(state.text_time_B)
    elif state.config.image_guidance != 1:
        # Without a text there is none to wait for: its time is 1, as in training.
        times.append(np.ones(len(state.images_in_flow)))
        parts += [_image_alone(state, int(i), last + n) for n, i in enumerate(state.images_in_flow)]
    elements = join(parts)
    patches_I = np.array([len(p) for p in state.patches], np.int64)
    features_U = np.array([len(f) for f in state.features], np.int64)
    layout = lay_out(elements, patches_I, features_U)
    time_I = np.array(state.image_time, np.float32)[layout.image_I]
    plan = AttentionPlan.build(np.unique(layout.document_T, return_counts=True)[1])
    if state.config.image_weak == "entropy" and len(parts) > even:
        first = int(np.searchsorted(layout.document_T, last))
        plan.sharpness_T = torch.ones(len(layout.document_T))
        plan.sharpness_T[first:] = state.config.entropy_sharpness
    inputs = ModelInputs(
        token_T=torch.from_numpy(layout.token_T),
        position_T=torch.from_numpy(layout.position_T),
        prompt_T=torch.from_numpy(layout.prompt_T.astype(np.float32)),
        text_time_T=torch.from_numpy(np.concatenate(times)[layout.document_T].astype(np.float32)),
        attention=plan,
        slot_S=torch.from_numpy(layout.slot_S),
        patch_N=torch.from_numpy(layout.patch_N),
        noisy_ND=_cat([state.patches[i] for i in layout.image_I], state.model.patch_dim),
        time_N=torch.from_numpy(np.repeat(time_I, patches_I[layout.image_I])),
        patch_grid_N2=_grids(
            [grid_positions(*state.requests[state.image_document[i]].grid) for i in layout.image_I]
        ),
        feature_M=torch.from_numpy(layout.feature_M),
        feature_MD=_cat(
            [torch.from_numpy(state.features[u]) for u in layout.prompt_image_U], state.model.feature_dim
        ),
        feature_grid_M2=_grids([feature_grid(len(state.features[u])) for u in layout.prompt_image_U]),
        logit_slot_R=torch.arange(len(layout.slot_S)),
    )
    return Batch(
        to_device(inputs, device),
        layout.image_I,
        int((full.kind_E == IMAGE).sum()),
        index_E[full.slot_E],
        int(full.slot_E.sum()),
    )


def _same_slots(full: Elements, weak: Elements) -> NDArray[np.bool_]:
    """Slots of the weak copies: those of generated elements, and BOS in place of the prompt's last element."""
    has_slots = np.zeros(int(full.document_E.max()) + 1, bool)
    has_slots[full.document_E[full.slot_E]] = True
    return np.where(weak.prompt_E, has_slots[weak.document_E], weak.slot_E)


def _with_images(state: State, full: Elements, document: int) -> Elements:
    """Copies of the documents with an image in flow, without slots; numbered from `document` on."""
    wanted_B = np.zeros(len(state.requests), bool)
    wanted_B[np.array(state.image_document, int)[state.images_in_flow]] = True
    copy = full.take(wanted_B[full.document_E])
    copy.slot_E = np.zeros(len(copy), bool)
    copy.document_E = copy.document_E + document
    return copy


def _image_alone(state: State, block: int, document: int) -> Elements:
    return Elements(
        np.full(2, document),
        np.array([0, IMAGE]),
        np.array([state.bos_id, state.image_id]),
        np.array([-1, block]),
        np.array([True, False]),
        np.zeros(2, bool),
    )


def _cat(parts: list[Tensor], width: int) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, width)


def _grids(grids: list[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(grids) if grids else np.zeros((0, 2), np.int64))
