"""From the running batch to network inputs, with the weak copies that guidance compares against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from oneflow_core.layout import IMAGE, Elements, Layout, join, lay_out
from oneflow_core.model.attention import AttentionPlan
from oneflow_core.model.cache import KeyValueCache
from oneflow_core.model.inputs import ModelInputs, to_device
from oneflow_core.sampling.media import Media
from oneflow_core.sampling.prefix import PrefixCache, without_prefix
from oneflow_core.sampling.reencoding import as_shown, encode_finished


class Running(Protocol):
    """What a batch is built from: `Media` with elements."""

    elements: Elements
    text_time_B: NDArray[np.float64]

    @property
    def due_B(self) -> NDArray[np.bool_]:
        """Documents that the network must see."""
        ...


@dataclass
class Batch:
    """One forward pass. `documents` full copies come first, then weak copies."""

    inputs: ModelInputs
    cache: KeyValueCache | None
    image_I: NDArray[np.int64]
    """Block of each image in the pass, full and weak, in the order of their patches."""
    full_images: int
    """How many of those belong to full copies."""
    slot_element_S: NDArray[np.int64]
    """Element of the state that each slot of a full copy stands for."""
    full_slots: int
    """How many of the slots belong to full copies; the weak copies' follow in the same order, if any."""


def build_batch(state: Running, device: torch.device, prefixes: PrefixCache | None = None) -> Batch:
    """Lays out the documents that are due, and weak copies where guidance is on.

    The weak copy for image guidance is the image alone after BOS, for text guidance the document without its
    prompt: both are what prompt dropout shows in training. Entropy guidance takes the whole document once more.
    With `prefixes`, prompts are read from there and are no part of the pass. Images that were finished by now are
    re-encoded first, where that is on.
    """
    assert isinstance(state, Media)
    encode_finished(state, state.due_B)
    index_E = np.flatnonzero(state.due_B[state.elements.document_E])
    full = as_shown(state, state.elements.take(index_E))
    parts, times, even = _copies(state, full)
    layout = lay_out(join(parts), state.patches_I, state.features_U)
    text_time_T = np.where(layout.copy_T < 0, 1.0, np.concatenate(times)[layout.document_T])
    sharpness_T = None
    if state.config.image_weak == "entropy" and len(parts) > even:
        weak_T = (layout.document_T >= len(state.requests) * even) & (layout.copy_T >= 0)
        sharpness_T = torch.from_numpy(np.where(weak_T, state.config.entropy_sharpness, 1.0)).float()
    layout, plan, kept_T = _plan(layout, prefixes, len(state.requests))
    plan.sharpness_T = None if sharpness_T is None else sharpness_T[kept_T]
    return Batch(
        to_device(state.inputs(layout, plan, text_time_T[kept_T]), device),
        prefixes.cache if prefixes else None,
        layout.image_I,
        int((full.kind_E == IMAGE).sum()),
        index_E[full.slot_E],
        int(full.slot_E.sum()),
    )


def _copies(state: Running, full: Elements) -> tuple[list[Elements], list[NDArray[np.float64]], int]:
    """Full and weak copies, the text times of their documents, and how many parts are copies of all documents."""
    assert isinstance(state, Media)
    parts, times, last = [full], [state.text_time_B], len(state.requests)
    if state.config.text_guidance:
        parts.append(_unprompted(state.model.objective == "oneflow", full, last))
        times.append(state.text_time_B)
    even = len(parts)
    last *= even
    if state.config.image_guidance != 1 and state.config.image_weak == "entropy":
        parts.append(_with_images(state, full, last))
        times.append(state.text_time_B)
    elif state.config.image_guidance != 1:
        # Without a text there is none to wait for: its time is 1, as in training.
        times.append(np.ones(len(state.images_in_flow)))
        parts += [image_alone(state, int(i), last + n) for n, i in enumerate(state.images_in_flow)]
    return parts, times, even


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


def _unprompted(insertions: bool, full: Elements, last: int) -> Elements:
    """Copies without prompts, numbered from `last` on. Slots are those of the full ones, in the same order.

    Where a prompt owns a slot, BOS takes it. A prefix owns none: the BOS behind it does, and is left as it is.
    """
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


def _with_images(state: Media, full: Elements, document: int) -> Elements:
    """Copies of the documents with an image in flow, without slots; numbered from `document` on."""
    wanted_B = np.zeros(len(state.requests), bool)
    wanted_B[np.array(state.image_document, int)[state.images_in_flow]] = True
    copy = full.take(wanted_B[full.document_E])
    copy.slot_E = np.zeros(len(copy), bool)
    copy.document_E = copy.document_E + document
    return copy


def image_alone(state: Media, block: int, document: int) -> Elements:
    """An image after BOS, as document number `document`."""
    return Elements(
        np.full(2, document),
        np.array([0, IMAGE]),
        np.array([state.bos_id, state.image_id]),
        np.array([-1, block]),
        np.array([True, False]),
        np.zeros(2, bool),
        np.zeros(2, np.int64),
    )
