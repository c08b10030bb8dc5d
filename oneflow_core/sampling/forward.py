"""From the running batch to network inputs, with the weak copies that guidance compares against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.layout import IMAGE, Elements, Layout, join, lay_out
from oneflow_core.model.attention import AttentionPlan
from oneflow_core.model.cache import KeyValueCache
from oneflow_core.model.inputs import ModelInputs, to_device
from oneflow_core.sampling.draw import guided
from oneflow_core.sampling.media import Media
from oneflow_core.sampling.prefix import PrefixCache, without_prefix
from oneflow_core.sampling.reencoding import as_shown, encode_finished

if TYPE_CHECKING:
    from oneflow_core.sampling.growing import Growing


@dataclass
class Batch:
    """One forward pass. Full copies of documents come first, then weak copies."""

    inputs: ModelInputs
    cache: KeyValueCache | None
    image_I: NDArray[np.int64]
    """Block of each image in the pass, full and weak, in the order of their patches."""
    full_images: int
    """How many of those belong to full copies."""
    slot_element_S: NDArray[np.int64]
    """Element of the state that each slot of a full copy stands for."""
    guidance_S: NDArray[np.float64]
    """w of the text guidance at each of those slots; slots of weak copies follow, of those whose w is not 0."""

    def guided(self, values: Tensor | None) -> Tensor:
        """What the network said at the slots of full copies, guided."""
        return guided(values, self.guidance_S)


def build_batch(state: Growing, device: torch.device, prefixes: PrefixCache | None = None) -> Batch:
    """Lays out the documents that are due, and weak copies of those that are guided.

    The weak copy for image guidance is the image alone after BOS, for text guidance the document without its
    prompt: both are what prompt dropout shows in training. Entropy guidance takes the whole document once more.
    With `prefixes`, prompts are read from there and are no part of the pass. Images that were finished by now are
    re-encoded first, where that is on.
    """
    due_B, count = state.due_B, len(state.requests)
    encode_finished(state, due_B)
    index_E = np.flatnonzero(due_B[state.elements.document_E])
    full = as_shown(state, state.elements.take(index_E))
    alone_I = _alone(state)
    layout = lay_out(join([full, *_copies(state, full, alone_I)]), state.patches_I, state.features_U)
    # Without a text there is none to wait for: the time of an image alone is 1, as in training.
    times = np.concatenate([np.tile(state.text_time_B, COPIES), np.ones(len(alone_I))])
    text_time_T = np.where(layout.copy_T < 0, 1.0, times[layout.document_T])
    sharpness_T = None
    if state.config.image_weak == "entropy" and (layout.document_T >= 2 * count).any():
        weak_T = (layout.document_T >= 2 * count) & (layout.copy_T >= 0)
        sharpness_T = torch.from_numpy(np.where(weak_T, state.config.entropy_sharpness, 1.0)).float()
    layout, plan, kept_T = _plan(layout, prefixes, count)
    plan.sharpness_T = None if sharpness_T is None else sharpness_T[kept_T]
    slot_element_S = index_E[full.slot_E]
    return Batch(
        to_device(state.inputs(layout, plan, text_time_T[kept_T]), device),
        prefixes.cache if prefixes else None,
        layout.image_I,
        int((full.kind_E == IMAGE).sum()),
        slot_element_S,
        state.text_guidance_B[state.elements.document_E[slot_element_S]],
    )


COPIES = 3
"""Numbers of documents in a pass: b is document b itself, B + b without its prompt, 2B + b with a more even attention;
from 3B on they are images alone."""


def _alone(state: Media) -> NDArray[np.int64]:
    """The images in flow that are shown alone as well."""
    if state.config.image_weak == "entropy":
        return np.zeros(0, np.int64)
    flowing = state.images_in_flow
    return flowing[state.image_guidance_B[state.image_document[flowing]] != 1]


def _copies(state: Media, full: Elements, alone_I: NDArray[np.int64]) -> list[Elements]:
    """The weak copies of documents that are guided."""
    count, parts = len(state.requests), []
    guided_B = state.text_guidance_B != 0
    if guided_B.any():
        mine = full if guided_B.all() else full.take(guided_B[full.document_E])
        parts.append(unprompted(state.model.objective == "oneflow", mine, count))
    wanted_B = np.zeros(count, bool)
    wanted_B[state.image_document[state.images_in_flow]] = True
    wanted_B &= state.image_guidance_B != 1
    if state.config.image_weak == "entropy" and wanted_B.any():
        copy = full.take(wanted_B[full.document_E])
        copy.slot_E = np.zeros(len(copy), bool)
        copy.document_E = copy.document_E + 2 * count
        parts.append(copy)
    return [*parts, images_alone(state, alone_I, COPIES * count)] if len(alone_I) else parts


def _plan(
    layout: Layout, prefixes: PrefixCache | None, requests: int
) -> tuple[Layout, AttentionPlan, NDArray[np.bool_]]:
    """The layout of the pass, its attention, and which tokens of the whole layout it holds."""
    if prefixes is None:
        return (
            layout,
            AttentionPlan.of_runs(layout.document_T, layout.copy_T),
            np.ones_like(layout.copy_T, bool),
        )
    shorter, document_B = without_prefix(layout)
    kept_T = layout.copy_T >= 0
    return shorter, prefixes.plan(shorter, np.where(document_B < 0, -1, document_B % requests)), kept_T


def unprompted(insertions: bool, full: Elements, last: int) -> Elements:
    """Copies without prompts, numbered from `last` on. Slots are those of the full ones, in the same order.

    Where a prompt owns a slot, BOS takes it. A prefix owns none: the BOS behind it does, and is left as it is.
    """
    if not len(full):
        return full
    first_E = full.document_E != np.r_[-1, full.document_E[:-1]]
    prefixed = np.zeros(int(full.document_E.max()) + 1, bool)
    prefixed[full.document_E[full.copy_E < 0]] = True
    carrier_E = (full.copy_E >= 0) & np.r_[False, full.copy_E[:-1] < 0]
    opens_E = np.where(prefixed[full.document_E], carrier_E, first_E)
    weak = full.take(~full.prompt_E | opens_E)
    if insertions:
        has_slots = np.zeros(len(prefixed), bool)
        has_slots[full.document_E[full.slot_E]] = True
        weak.slot_E = np.where(weak.prompt_E, has_slots[weak.document_E], weak.slot_E)
    weak.document_E = weak.document_E + last
    return weak


def images_alone(state: Media, block_I: NDArray[np.int64], first: int) -> Elements:
    """Each image after BOS, as documents number `first` and following."""
    count = len(block_I)
    block = np.full((count, 2), -1)
    block[:, 1] = block_I
    return Elements(
        first + np.repeat(np.arange(count), 2),
        np.tile([0, IMAGE], count),
        np.tile([state.bos_id, state.image_id], count),
        block.ravel(),
        np.tile([True, False], count),
        np.zeros(2 * count, bool),
        np.zeros(2 * count, np.int64),
    )
