"""Processes and devices: joining the process group, and sharding a model over it with FSDP2.

A mesh of `replicas` by shards: a group of ranks along `shard` holds the model once, each rank a piece of every
parameter; ranks along `replicate` hold the same piece. Every rank reads packs of its own, or under tensor parallelism
every group of `tensor_parallel` ranks that follow one another.
"""

import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from workflows.errors import UsageError
from workflows.training.blocks import prepare_blocks
from workflows.training.config import ComputeSettings
from workflows.training.tensor_parallel import divide, group_of

SHARD = "shard"
"""Name of the dimension of the mesh that parameters are sharded over."""
BACKEND = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True, slots=True)
class Worker:
    """This process among the others."""

    rank: int
    world_size: int
    device: torch.device
    tensor: int = 1
    """Ranks of a group that read the same packs and share their arithmetic."""

    @property
    def data_rank(self) -> int:
        """Number of this rank's group among those that read packs of their own."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """How many such groups there are."""
        return self.world_size // self.tensor

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which speaks for all."""
        return self.rank == 0


def device_type(settings: ComputeSettings) -> str:
    """cpu or cuda."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def join_group(settings: ComputeSettings) -> Worker:
    """Join the process group that the environment (Ray, torchrun) describes, or make one of this process alone."""
    kind = device_type(settings)
    if not dist.is_initialized():
        alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        patience = timedelta(seconds=group_timeout_s(settings))
        dist.init_process_group(BACKEND[kind], timeout=patience, **alone)  # type: ignore[arg-type]
    torch.set_num_threads(settings.threads)
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return Worker(dist.get_rank(), dist.get_world_size(), device, settings.tensor_parallel)


def group_timeout_s(settings: ComputeSettings) -> float:
    """After how many seconds a collective gives up: later than the watchdog, which says more, even where it is slow."""
    return 5 * settings.stall_timeout_s + 60


def shard(model: nn.Module, settings: ComputeSettings, worker: Worker) -> None:
    """Shard `model` in place over the mesh, block by block; gradients are summed over all workers, not averaged.

    A block is an element of a ModuleList; small ones are left to the whole. Names of parameters stay.

    Raises:
        UsageError: as `mesh_of` and `check_dimensions`.
    """
    # Outputs are views of one head's result; nothing writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    model.to(worker.device)
    mesh = mesh_of(settings, worker)
    if settings.tensor_parallel > 1:
        divide(model, group_of(settings.tensor_parallel))
    prepare_blocks(model, settings)
    policy = MixedPrecisionPolicy()
    if settings.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    for blocks in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            if _megabytes(block) >= settings.shard_min_mb:
                fully_shard(block, reshard_after_forward=settings.reshard_after_forward, **options)
    fully_shard(model, reshard_after_forward=settings.reshard_after_forward, **options)
    for module in fsdp_modules(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def mesh_of(settings: ComputeSettings, worker: Worker) -> DeviceMesh:
    """The mesh (replicate, shard), or (shard) alone where there is one replica. All ranks must make it.

    Raises:
        UsageError: replicas that do not divide the workers there are, or tensor groups that do not divide a copy's.
    """
    replicas, world = settings.replicas, worker.world_size
    if world % replicas:
        raise UsageError(f"compute.replicas {replicas}", f"{world} workers are there", "it must divide them")
    if (world // replicas) % settings.tensor_parallel:
        cause = f"{world // replicas} workers hold a copy of the model"
        raise UsageError(f"compute.tensor_parallel {settings.tensor_parallel}", cause, "it must divide them")
    if replicas == 1:
        return init_device_mesh(worker.device.type, (world,), mesh_dim_names=(SHARD,))
    shape = (replicas, world // replicas)
    return init_device_mesh(worker.device.type, shape, mesh_dim_names=("replicate", SHARD))


def shard_group(model: nn.Module) -> dist.ProcessGroup:
    """The ranks whose pieces make one whole model; all, where nothing is sharded."""
    held = next((p for p in model.parameters() if isinstance(p, DTensor)), None)
    if held is None:
        assert dist.group.WORLD is not None
        return dist.group.WORLD
    return held.device_mesh.get_group(SHARD)


def _megabytes(module: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    """Every part of `model` that is sharded by itself."""
    return [m for m in model.modules() if isinstance(m, FSDPModule)]


def last_microstep(model: nn.Module, last: bool) -> None:
    """Tell FSDP whether the next backward pass is the last of its step: before it nothing is communicated."""
    root = cast(FSDPModule, model)
    root.set_requires_gradient_sync(last)
    root.set_reshard_after_backward(last)


def local(tensor: Tensor) -> Tensor:
    """This rank's piece of a tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor on every rank. All ranks must call it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def summed(values: list[float]) -> list[float]:
    """Sums of `values` over all ranks, element by element; all ranks must call it."""
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(v) for v in total]


def rows_of_all(worker: Worker, row: list[float]) -> list[list[float]]:
    """`row` of every rank, in their order; all ranks must call it, with rows of one length."""
    rows = torch.zeros(worker.world_size, len(row), dtype=torch.float64)
    rows[worker.rank] = torch.tensor(row, dtype=torch.float64)
    dist.all_reduce(rows)
    told: list[list[float]] = rows.tolist()
    return told
