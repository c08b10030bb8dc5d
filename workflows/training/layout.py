"""Which numbers of workers, copies and tensor groups go together, and with the lanes of the data."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflows.training.config import ComputeSettings


def check_layout(compute: "ComputeSettings", lanes: int) -> None:
    """Whether workers can be dealt out as `compute` says.

    Raises:
        ValueError: one number does not divide another, or a setting does not go with tensor parallelism.
    """
    workers, tensor, replicas = compute.workers, compute.tensor_parallel, compute.replicas
    if workers % replicas:
        raise ValueError(f"compute.replicas {replicas} must divide compute.workers {workers}")
    if (workers // replicas) % tensor:
        raise ValueError(
            f"compute.tensor_parallel {tensor} must divide compute.workers {workers} / compute.replicas {replicas}"
        )
    if lanes % (workers // tensor):
        groups = f" / compute.tensor_parallel {tensor}" if tensor > 1 else ""
        raise ValueError(f"compute.workers {workers}{groups} must divide data.lanes {lanes}")
    if (compute.min_workers or 1) > workers:
        raise ValueError(f"compute.min_workers {compute.min_workers} is above compute.workers {workers}")
    if (compute.min_workers or tensor) % tensor:
        raise ValueError(
            f"compute.tensor_parallel {tensor} must divide compute.min_workers {compute.min_workers}"
        )
    if tensor > 1 and compute.compile:
        raise ValueError(
            f"compute.tensor_parallel {tensor} with compute.compile: blocks that exchange activations are not "
            "compiled; take one of the two"
        )
