"""The plan of a run: parameters, memory of a GPU, arithmetic, and how long it will take."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from oneflow_core.flops import NeededFlops
from oneflow_core.model import PRESETS, ModelConfig, OneFlowModel
from workflows.errors import OneFlowError, UsageError
from workflows.training.config import TrainConfig
from workflows.training.materials import Materials, gather
from workflows.training.planning.hardware import SHARE_ASSUMED, Gpu, gpu_named
from workflows.training.planning.memory import MOMENTS, Layout, Memory, memory_of
from workflows.training.planning.packs import PackShape, assumed, sampled
from workflows.training.tensor_parallel import check_dimensions
from workflows.urls import without_secrets

SECONDS_A_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run takes. Bytes and FLOPs are those of one GPU and of the whole step, as their names say."""

    preset: str
    gpu: Gpu
    gpus: int
    lengths: str
    """Where the packs' lengths come from: the corpus, or assumed, and why."""
    parameters: Mapping[str, int]
    memory: Memory
    pack: PackShape
    packs_per_step: int
    flops_per_step: float
    """That the method needs, of all GPUs."""
    recomputed_flops: float
    """That activation checkpointing adds."""
    step_s: float
    steps: int
    minutes_bind: bool
    """The budget ends by its minutes, not by its steps."""

    @property
    def fits(self) -> bool:
        """Whether the peak is below the GPU's memory."""
        return self.memory.peak <= self.gpu.memory

    @property
    def hours(self) -> float:
        """Of the whole budget."""
        return self.steps * self.step_s / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        memory = self.memory
        return {
            "preset": self.preset,
            "gpu": {**asdict(self.gpu), "count": self.gpus},
            "lengths": self.lengths,
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "memory_bytes": {
                "held": dict(memory.held),
                "passing": {moment: dict(memory.passing[moment]) for moment in MOMENTS},
                "total": {moment: memory.at(moment) for moment in MOMENTS},
                "peak": memory.peak,
                "peak_moment": memory.peak_moment,
                "share": memory.peak / self.gpu.memory,
                "fits": self.fits,
            },
            "pack": asdict(self.pack),
            "packs_per_step": self.packs_per_step,
            "tokens_per_step": self.packs_per_step * self.pack.tokens,
            "flops_per_step": self.flops_per_step,
            "recomputed_flops_per_step": self.recomputed_flops,
            "peak_share_assumed": SHARE_ASSUMED,
            "step_s": self.step_s,
            "steps": self.steps,
            "minutes_bind": self.minutes_bind,
            "hours": self.hours,
            "gpu_days": self.hours * self.gpus / 24,
        }


def plan(config: TrainConfig, gpu: str = "H100") -> Plan:
    """What `config` will take on GPUs of that name. Reads some documents of the corpus; starts nothing.

    Raises:
        UsageError: a GPU that is not known, or dimensions that the network does not have or that do not divide.
    """
    device = gpu_named(gpu)
    dims, pack, lengths = _packs(config)
    check_dimensions(dims, config.compute.tensor_parallel)
    with torch.device("meta"):
        model = OneFlowModel(dims)
    data, compute = config.data, config.compute
    packs = data.lanes * data.packs_per_lane
    layout = Layout(compute, config.optimiser, packs // (compute.workers // compute.tensor_parallel))
    needed = NeededFlops.of(model)
    flops = pack.flops(needed) * packs
    recomputed = 0.0
    if compute.activation_checkpointing == "full":
        recomputed = packs * (2.0 * needed.trunk * pack.tokens + needed.attention / 3 * pack.squares)
    seconds = (flops + recomputed) / (compute.workers * device.rate(compute.precision) * SHARE_ASSUMED)
    steps, bind = _steps(config, seconds)
    return Plan(
        preset=config.model.preset,
        gpu=device,
        gpus=compute.workers,
        lengths=lengths,
        parameters=parameters_by_part(model),
        memory=memory_of(model, layout, pack),
        pack=pack,
        packs_per_step=packs,
        flops_per_step=flops,
        recomputed_flops=recomputed,
        step_s=seconds,
        steps=steps,
        minutes_bind=bind,
    )


def parameters_by_part(model: OneFlowModel) -> dict[str, int]:
    """Numbers of the trunk, the embedding, the adapters of images, and the heads."""
    parts = {"trunk": 0, "embedding": 0, "adapters": 0, "heads": 0}
    place = {"backbone": "trunk", "embedding": "embedding", "prompt": "embedding", "heads": "heads"}
    for name, parameter in model.named_parameters():
        parts[place.get(name.partition(".")[0], "adapters")] += parameter.numel()
    return parts


def _packs(config: TrainConfig) -> tuple[ModelConfig, PackShape, str]:
    """Dimensions and packs, from the corpus if it can be read."""
    try:
        materials: Materials = gather(config)
        return materials.model_config, sampled(config, materials), f"read from {materials.corpus_version}"
    except UsageError:
        raise
    except Exception as error:  # Stores fail each in their own way, also for want of credentials.
        try:
            dims = ModelConfig(**{**PRESETS[config.model.preset].to_json(), **config.model.dims})
        except (TypeError, ValueError) as wrong:
            raise UsageError("model.dims", str(wrong), "change the dimensions") from None
        cause = error.cause if isinstance(error, OneFlowError) else f"{type(error).__name__}: {error}"
        told = without_secrets(" ".join(cause.split()))[:160]
        return dims, assumed(config, dims), f"assumed, as the corpus cannot be read ({told})"


def _steps(config: TrainConfig, seconds: float) -> tuple[int, bool]:
    budget = config.budget
    if budget.max_minutes is None:
        return budget.steps, False
    there_is_time_for = max(1, int(60 * budget.max_minutes / seconds))
    return min(budget.steps, there_is_time_for), there_is_time_for < budget.steps
