"""The network: one bidirectional Transformer over text tokens and image patches, with its adapters and heads."""

from oneflow_core.model.attention import AttentionPlan
from oneflow_core.model.cache import KeyValueCache
from oneflow_core.model.config import PRESETS, ModelConfig
from oneflow_core.model.inputs import ModelInputs, ModelOutputs
from oneflow_core.model.oneflow import OneFlowModel

__all__ = [
    "PRESETS",
    "AttentionPlan",
    "KeyValueCache",
    "ModelConfig",
    "ModelInputs",
    "ModelOutputs",
    "OneFlowModel",
]
