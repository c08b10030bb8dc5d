"""Small Python objects from rank to rank; every rank of the group must call these, in the same order."""

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def from_first(value: T, group: dist.ProcessGroup | None = None) -> T:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def to_first(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's value by rank, on rank 0; an empty list on the others."""
    leads = dist.get_rank() == 0
    found: list[T] = [value] * dist.get_world_size()
    dist.gather_object(value, found if leads else None, group=group)
    return found if leads else []
