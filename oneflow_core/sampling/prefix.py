"""Keys and values of prompts, computed once for all steps of a document.

Where the network's prompts attend among themselves alone (`prompt_attention` prefix), they are the same at every step.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from oneflow_core.layout import Layout, lay_out
from oneflow_core.model.attention import AttentionPlan, Rows
from oneflow_core.model.cache import KeyValueCache
from oneflow_core.model.inputs import to_device
from oneflow_core.model.oneflow import OneFlowModel
from oneflow_core.ragged import ragged_range, runs
from oneflow_core.sampling.rows import Rows as CacheRows

if TYPE_CHECKING:
    from oneflow_core.sampling.growing import Growing


class PrefixCache:
    """The prefixes of a batch's documents in rows of a cache, and room for one pass besides."""

    def __init__(self, model: OneFlowModel) -> None:
        weight = model.embedding.weight
        self.model = model
        self.cache = KeyValueCache(model.config, device=weight.device, dtype=weight.dtype)
        self.rows = CacheRows(self.cache)
        self.row_B: list[NDArray[np.int64]] = []
        """Rows of each document's prefix."""
        self._flatten()

    def fill(self, state: Growing) -> None:
        """Computes the prefixes of the documents that joined since."""
        first, e = len(self.row_B), state.elements
        if first == len(state.requests):
            return
        given = e.take((e.copy_E < 0) & (e.document_E >= first))
        given.slot_E = np.zeros(len(given), bool)
        layout = lay_out(given, state.patches_I, state.features_U)
        written_T = self.rows.take(len(layout.token_T))
        if len(written_T):
            _, length_B = runs(layout.document_T)
            plan = AttentionPlan.of_rows(Rows(length_B, length_B, written_T), layout.document_T)
            plan.write_T = torch.from_numpy(written_T)
            inputs = state.inputs(layout, plan, np.ones(len(written_T)))
            self.model(to_device(inputs, self.model.embedding.weight.device), self.cache)
        bounds = np.searchsorted(layout.document_T, np.arange(first, len(state.requests) + 1))
        self.row_B += [written_T[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
        self._flatten()

    def keep(self, left_B: NDArray[np.bool_]) -> None:
        """The rows of documents outside `left_B` are free for others; those that joined just now have none yet."""
        held = list(zip(self.row_B, left_B.tolist(), strict=False))
        self.rows.give(np.concatenate([rows for rows, stays in held if not stays] or [np.zeros(0, np.int64)]))
        self.row_B = [rows for rows, stays in held if stays]
        self._flatten()

    def plan(self, layout: Layout, document_B: NDArray[np.int64]) -> AttentionPlan:
        """Attention of a pass over `layout`, which has no prefixes; row r has that of `document_B[r]`, -1 for none."""
        start_B, length_B = runs(layout.document_T, layout.copy_T)
        shared_B = np.where(document_B >= 0, self._length_B[document_B], 0)
        # What a pass writes is read in that pass alone: its rows are free for the next one.
        written_T = self.rows.take(len(layout.token_T))
        self.rows.give(written_T)
        key_rows = np.concatenate([self._row_K, written_T])
        starts = np.stack([self._start_B[document_B], len(self._row_K) + start_B], 1)
        lengths = np.stack([shared_B, length_B], 1)
        rows = Rows(length_B, shared_B + length_B, key_rows[ragged_range(starts.ravel(), lengths.ravel())])
        plan = AttentionPlan.of_rows(rows, layout.document_T)
        plan.write_T = torch.from_numpy(written_T)
        return plan

    def _flatten(self) -> None:
        self._row_K = np.concatenate([*self.row_B, np.zeros(0, np.int64)])
        self._length_B = np.array([len(rows) for rows in self.row_B], np.int64)
        self._start_B = np.cumsum(self._length_B) - self._length_B


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
