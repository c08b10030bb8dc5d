"""Keys and values of prompts, computed once for all steps of a generation.

Where the network's prompts attend among themselves alone (`prompt_attention` prefix), they are the same at every step.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from oneflow_core.layout import Elements, Layout, lay_out
from oneflow_core.model.attention import AttentionPlan, Rows
from oneflow_core.model.cache import KeyValueCache
from oneflow_core.model.inputs import to_device
from oneflow_core.model.oneflow import OneFlowModel
from oneflow_core.ragged import ragged_range, runs
from oneflow_core.sampling.media import Media


class PrefixCache:
    """The prefixes of a batch's documents in the first rows of a cache, and room for one pass behind them."""

    def __init__(self, model: OneFlowModel, media: Media, elements: Elements) -> None:
        given = elements.take(elements.copy_E < 0)
        weight = model.embedding.weight
        self.cache = KeyValueCache(model.config, device=weight.device, dtype=weight.dtype)
        given.slot_E = np.zeros(len(given), bool)
        layout = lay_out(given, media.patches_I, media.features_U)
        self.rows = len(layout.token_T)
        self.cache.reserve(self.rows)
        count = len(media.requests)
        self.start_B = np.searchsorted(layout.document_T, np.arange(count))
        self.length_B = np.bincount(layout.document_T, minlength=count)
        if self.rows:
            plan = AttentionPlan.of_runs(layout.document_T, layout.copy_T)
            plan.write_T = torch.arange(self.rows)
            inputs = media.inputs(layout, plan, np.ones(self.rows))
            model(to_device(inputs, weight.device), self.cache)

    def plan(self, layout: Layout, document_B: NDArray[np.int64]) -> AttentionPlan:
        """Attention of a pass over `layout`, which has no prefixes; row r has that of `document_B[r]`, -1 for none."""
        start_B, length_B = runs(layout.document_T, layout.copy_T)
        shared_B = np.where(document_B >= 0, self.length_B[document_B], 0)
        starts = np.stack([self.start_B[document_B], self.rows + start_B], 1)
        lengths = np.stack([shared_B, length_B], 1)
        rows = Rows(length_B, shared_B + length_B, ragged_range(starts.ravel(), lengths.ravel()))
        plan = AttentionPlan.of_rows(rows, layout.document_T)
        self.cache.reserve(self.rows + len(layout.token_T))
        plan.write_T = self.rows + torch.arange(len(layout.token_T))
        return plan


def without_prefix(layout: Layout) -> tuple[Layout, NDArray[np.int64]]:
    """A layout without prefixes; and for each run that is left the document whose prefix it had, or -1."""
    left_T = layout.copy_T >= 0
    place_T = np.cumsum(left_T) - 1
    left_M = left_T[layout.feature_M]
    had = np.zeros(int(layout.document_T[-1]) + 1, bool)
    had[layout.document_T[~left_T]] = True
    over_T = {
        name: getattr(layout, name)[left_T]
        for name in ("token_T", "document_T", "copy_T", "element_T", "position_T", "prompt_T")
    }
    shorter = dataclasses.replace(
        layout,
        **over_T,
        slot_S=place_T[layout.slot_S],
        patch_N=place_T[layout.patch_N],
        feature_M=place_T[layout.feature_M[left_M]],
        read_image_U=layout.read_image_U[layout.read_copy_U >= 0],
        read_copy_U=layout.read_copy_U[layout.read_copy_U >= 0],
    )
    document_B = shorter.document_T[runs(shorter.document_T, shorter.copy_T)[0]]
    return shorter, np.where(had[document_B], document_B, -1)
