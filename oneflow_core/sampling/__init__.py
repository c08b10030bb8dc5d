"""Generation: text by insertions and images by flow, in one loop (paper section 2.3); and the baselines' own ways."""

from __future__ import annotations

from typing import Any

from oneflow_core.model.oneflow import OneFlowModel
from oneflow_core.sampling.base import Sampler
from oneflow_core.sampling.causal import CausalSampler
from oneflow_core.sampling.masked import MaskedSampler
from oneflow_core.sampling.sampler import InsertionSampler
from oneflow_core.sampling.types import (
    Generation,
    ImageState,
    Reencode,
    Request,
    SamplerConfig,
    Trace,
)

__all__ = [
    "CausalSampler",
    "Generation",
    "ImageState",
    "InsertionSampler",
    "MaskedSampler",
    "Request",
    "Sampler",
    "SamplerConfig",
    "Trace",
    "build_sampler",
]


def build_sampler(
    model: OneFlowModel, *, bos_id: int, image_id: int, reencode: Reencode | None = None
) -> Sampler[Any]:
    """The sampler of the objective that the model was trained under.

    `reencode` takes latents [B, C, h, w] to understanding features [B, P, dim]; `SamplerConfig.reencode` needs it.
    """
    kinds: dict[str, type[CausalSampler] | type[MaskedSampler] | type[InsertionSampler]] = {
        "oneflow": InsertionSampler,
        "transfusion": CausalSampler,
        "masked": MaskedSampler,
    }
    return kinds[model.config.objective](model, bos_id=bos_id, image_id=image_id, reencode=reencode)
