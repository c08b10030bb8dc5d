"""What the network sees and what it says, as tensors over one pack of documents.

Shapes: T tokens of the pack, S slots, N latent patches of I generated images, M understanding features,
R slots whose vocabulary logits are wanted, K (slot, token) pairs whose log-probability is wanted, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Self = TypeVar("Self")


def to_device(data: Self, device: torch.device | str) -> Self:
    """A copy of a dataclass of tensors (nested, or in lists) on `device`."""
    moved: dict[str, Any] = {}
    for field in dataclasses.fields(data):  # type: ignore[arg-type]
        value = getattr(data, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.to(device, non_blocking=True)
        elif dataclasses.is_dataclass(value):
            moved[field.name] = to_device(value, device)
        elif isinstance(value, list):
            moved[field.name] = [to_device(v, device) if dataclasses.is_dataclass(v) else v for v in value]
        else:
            moved[field.name] = value
    return type(data)(**moved)


@dataclass
class AttentionBucket:
    """Documents of like length, padded to a rectangle."""

    token_BL: Tensor
    """Index into the pack's tokens, int64; padding repeats token 0 of the pack."""
    mask: Tensor | None
    """Which keys a query sees, bool, [B, 1, 1, L] or [B, 1, L, L]; None where it is all of them."""


@dataclass
class AttentionPlan:
    """Block-diagonal attention over packed documents, exact: each document attends to itself alone.

    Within a document a token sees those whose order is not above its own: with one order for all it sees everything,
    with the place of each token as its order nothing after it, with the patches of an image sharing theirs
    Transfusion's mixture of both.
    """

    buckets: list[AttentionBucket]
    restore_T: Tensor
    """Where each token of the pack stands in the concatenation of all flattened buckets."""
    document_T: Tensor
    """Document of each token, for kernels that mask instead of gather."""
    sharpness_T: Tensor | None = None
    """Factor of each query's attention logits, float32; below 1 its attention is more even. None: 1 for all."""

    @classmethod
    def build(
        cls, lengths_B: NDArray[np.int64], order_T: NDArray[np.int64] | None = None, waste: float = 0.12
    ) -> AttentionPlan:
        """Groups documents of lengths `lengths_B`, in pack order, so that padding stays below `waste` of a bucket.

        `order_T` is the order of each token; None: every token sees its whole document.
        """
        starts_B = np.cumsum(lengths_B) - lengths_B
        restore_T = np.empty(int(lengths_B.sum()), np.int64)
        buckets, offset = [], 0
        for members in _groups(lengths_B, waste):
            longest = int(lengths_B[members].max())
            real_BL = np.arange(longest) < lengths_B[members, None]
            index_BL = np.where(real_BL, starts_B[members, None] + np.arange(longest), 0)
            restore_T[index_BL[real_BL]] = offset + np.flatnonzero(real_BL)
            offset += real_BL.size
            order_BL = None if order_T is None else order_T[index_BL]
            buckets.append(AttentionBucket(torch.from_numpy(index_BL), _mask(real_BL, order_BL)))
        document_T = np.repeat(np.arange(len(lengths_B)), lengths_B)
        return cls(buckets, torch.from_numpy(restore_T), torch.from_numpy(document_T))


def _mask(real_BL: NDArray[np.bool_], order_BL: NDArray[np.int64] | None) -> Tensor | None:
    """Keys that are real and whose order is not above the query's; a query that is padding sees all real ones."""
    if order_BL is None or (order_BL == order_BL[:, :1])[real_BL].all():
        return None if real_BL.all() else torch.from_numpy(real_BL[:, None, None, :])
    seen_BLL = (order_BL[:, None, :] <= order_BL[:, :, None]) | ~real_BL[:, :, None]
    return torch.from_numpy((seen_BLL & real_BL[:, None, :])[:, None])


def _groups(lengths_B: NDArray[np.int64], waste: float) -> list[NDArray[np.int64]]:
    """Greedy from the longest: a bucket takes shorter documents while its share of padding stays below `waste`."""
    order = np.argsort(-lengths_B, kind="stable")
    groups: list[list[int]] = []
    used = longest = 0
    for b in order.tolist():
        length = int(lengths_B[b])
        if groups and 1 - (used + length) / (longest * (len(groups[-1]) + 1)) <= waste:
            groups[-1].append(b)
            used += length
        else:
            groups.append([b])
            used = longest = length
    return [np.array(g, np.int64) for g in groups]


@dataclass
class ModelInputs:
    """One pack of documents as the network sees it."""

    token_T: Tensor
    """Token ids, int64; 0 where a patch or a feature stands."""
    position_T: Tensor
    """Place within the document, int64."""
    prompt_T: Tensor
    """1.0 on prompt tokens, float32."""
    text_time_T: Tensor
    """t_text of each token's document, float32; used where the network is told the time."""
    attention: AttentionPlan
    slot_S: Tensor
    """Token index of each slot, int64."""
    patch_N: Tensor
    """Token index of each latent patch, int64."""
    noisy_ND: Tensor
    """Y_t, patchified, float32 [N, p*p*C]."""
    time_N: Tensor
    """t_img of each patch, float32."""
    patch_grid_N2: Tensor
    """(row, column) of each patch in its image, int64."""
    feature_M: Tensor
    """Token index of each understanding feature, int64."""
    feature_MD: Tensor
    """Understanding features, float32 [M, feature_dim]."""
    feature_grid_M2: Tensor
    """(row, column) of each feature in its image, int64."""
    logit_slot_R: Tensor
    """Slots (indices into S, ascending) whose vocabulary logits are wanted, int64."""
    pair_row_K: Tensor | None = None
    """For training: row in R of each missing token, ascending, int64; None to get whole logits instead."""
    pair_token_K: Tensor | None = None
    """For training: id of each missing token, int64."""


@dataclass
class ModelOutputs:
    """What the heads say."""

    pi_logit_S: Tensor
    """logit of P(gap misses nothing)."""
    rate_S: Tensor
    """lambda_nonzero >= 1: expected missing tokens of a gap that misses some."""
    logits_RV: Tensor | None
    """Vocabulary logits at the wanted slots, where no pairs were given."""
    nll_K: Tensor | None
    """-log Q(token) of each given pair."""
    image_ND: Tensor
    """The image head at every patch: velocity or clean latent, as the config says."""
