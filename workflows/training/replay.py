"""A bad step once more, on this machine alone: which part of the loss and which gradients are no numbers."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from oneflow_core.objectives import Objective
from oneflow_core.packing import Pack
from workflows.training.checkpoint import Checkpoints
from workflows.training.config import TrainConfig
from workflows.training.faults import read_fault, shown
from workflows.training.materials import gather
from workflows.training.parallel import device_type, join_group
from workflows.training.worker import run_root

SHOWN_GRADIENTS = 20


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a pack does with the weights of the run's newest checkpoint."""

    documents: list[str]
    loss: float | str
    parts: dict[str, float | str]
    bad_parts: list[str]
    """Parts of the loss that are no numbers."""
    bad_gradients: list[str]
    """Parameters whose gradient is none, the first ones."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A bad step, as it was told and as it is now."""

    step: int
    rank: int
    reason: str
    weights_of_step: int
    """Steps of the checkpoint whose weights were taken; 0: there is none, and they are the initial ones."""
    packs: list[Replayed]


def replay(config: TrainConfig, url: str) -> Replay:
    """Pass the packs stored at `url` forward and backward through the newest weights of the run of `config`.

    Raises:
        OneFlowError: no stored packs at `url`, or the corpora of `config` are not there.
    """
    about, packs = read_fault(url)
    worker = join_group(config.compute)
    try:
        materials = gather(config)
        model = materials.build_model(config.seed)
        held = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
        checkpoints = Checkpoints(run_root(config, materials.run_key), config.checkpoint.keep)
        restored = checkpoints.restore(held)
        checkpoints.close()
    finally:
        dist.destroy_process_group()
    model.to(worker.device)
    told = [_passed(model, materials.objective, pack.to(worker.device), about, config) for pack in packs]
    return Replay(about["step"], about["rank"], about["reason"], restored.step if restored else 0, told)


def _passed(
    model: nn.Module, objective: Objective, pack: Pack, about: dict[str, Any], config: TrainConfig
) -> Replayed:
    model.zero_grad()
    half = config.compute.precision == "bf16"
    with torch.autocast(device_type(config.compute), torch.bfloat16, enabled=half):
        out = objective.loss(model, pack, about["normalisers"])
    out.total.backward()
    parts = {name: float(part) for name, part in out.parts.items()}
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Replayed(
        list(pack.doc_ids),
        shown(float(out.total.detach())),
        {name: shown(part) for name, part in parts.items()},
        [name for name, part in parts.items() if not math.isfinite(part)],
        [name for name, grad in grads.items() if not grad.isfinite().all()][:SHOWN_GRADIENTS],
    )
