"""What the network sees and what it says, as tensors over one pack of documents.

Shapes: T tokens of the pack, S slots, N latent patches of I generated images, M understanding features,
R slots whose vocabulary logits are wanted, K (slot, token) pairs whose log-probability is wanted, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from oneflow_core.model.attention import AttentionPlan

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

    pi_logit_S: Tensor | None
    """logit of P(gap misses nothing); None for the baselines, which count nothing."""
    rate_S: Tensor | None
    """lambda_nonzero >= 1: expected missing tokens of a gap that misses some; None likewise."""
    logits_RV: Tensor | None
    """Vocabulary logits at the wanted slots, where no pairs were given; float32 (or float64)."""
    nll_K: Tensor | None
    """-log Q(token) of each given pair."""
    image_ND: Tensor
    """The image head at every patch: velocity or clean latent, as the config says."""
    delete_logit_S: Tensor | None = None
    """logit of P(the slot's own element does not belong to the document), where counts are free."""
    late: Callable[[Tensor], Tensor] | None = None
    """Vocabulary logits [F, V] of any slots of the pass, int64 [F], computed when asked for; in inference."""

    def logits_at(self, slot_F: Tensor) -> Tensor:
        """Vocabulary logits of these slots, [F, V]: computed now, or out of `logits_RV` where that has all slots."""
        if self.late is not None:
            return self.late(slot_F)
        assert self.logits_RV is not None
        return self.logits_RV[slot_F]
