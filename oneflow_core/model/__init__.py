"""The network: one bidirectional Transformer over text tokens and image patches, with its adapters and heads."""

from oneflow_core.model.config import PRESETS, ModelConfig
from oneflow_core.model.inputs import AttentionPlan, ModelInputs, ModelOutputs
from oneflow_core.model.oneflow import OneFlowModel

__all__ = ["PRESETS", "AttentionPlan", "ModelConfig", "ModelInputs", "ModelOutputs", "OneFlowModel"]
