"""Training objectives: how a document is corrupted and what the network is asked about it."""

from oneflow_core.objectives.oneflow import LossOutput, OneFlowConfig, OneFlowObjective

__all__ = ["LossOutput", "OneFlowConfig", "OneFlowObjective"]
