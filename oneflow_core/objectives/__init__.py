"""Training objectives: how a document is corrupted and what the network is asked about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneflow_core.model.config import ModelConfig
from oneflow_core.objectives.config import ObjectiveConfig
from oneflow_core.objectives.masked import MaskedObjective
from oneflow_core.objectives.oneflow import OneFlowObjective
from oneflow_core.objectives.protocol import LossOutput, Objective
from oneflow_core.objectives.transfusion import TransfusionObjective

if TYPE_CHECKING:
    from oneflow_core.tokenizer import Tokenizer

__all__ = [
    "LossOutput",
    "MaskedObjective",
    "Objective",
    "ObjectiveConfig",
    "OneFlowObjective",
    "TransfusionObjective",
    "build_objective",
]


def build_objective(config: ObjectiveConfig, model: ModelConfig, tokenizer: Tokenizer) -> Objective:
    """The objective that `config.kind` names.

    Raises:
        ValueError: the model was made for another one.
    """
    if config.kind != model.objective:
        raise ValueError(f"the objective is {config.kind}, the model's is {model.objective}; set both alike")
    if config.kind == "transfusion":
        return TransfusionObjective(config, model, tokenizer)
    if config.kind == "masked":
        return MaskedObjective(config, model, tokenizer)
    return OneFlowObjective(config, model, tokenizer)
