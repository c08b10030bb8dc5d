"""Who writes what of a checkpoint: torch.distributed.checkpoint plans it, here it is dealt out to files.

Replicated tensors are written once, by the rank that has least to write. A plan holds while names, shapes, dtypes
and sharding do, so that a run plans once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.tensor import DTensor

from oneflow_core.safetensors_layout import Kind, Place, lay_out
from workflows.training.commit import StoredTensor, chunk_key, stored_tensors

PIECE_BYTES = 64 << 20
"""Of a file. Small enough that some can be on their way at once, large enough for a request's latency to vanish."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A file to be: its name, first bytes, length, and which tensor's chunk of this rank lies where."""

    name: str
    head: bytes
    bytes: int
    chunks: tuple[tuple[str, Place], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`pieces` are this rank's; `tensors` are all of the checkpoint, with the files of their chunks."""

    pieces: tuple[Piece, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(Kind(getattr(torch, t.dtype), t.shape).bytes for t in self.tensors.values())


def agree(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None, piece_bytes: int) -> Plan:
    """The plan of all ranks of `group`; every one must call it, with its own pieces of the same tensors."""
    rank, world = dist.get_rank(), dist.get_world_size()
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), None, rank == 0)
    gathered: list[SavePlan] = [SavePlan([])] * world
    dist.all_gather_object(gathered, planner.create_local_plan(), group=group)
    # A function of what was gathered: every rank comes to the same, and nothing more need be sent.
    plans, metadata = planner.create_global_plan(gathered)
    dealt = [_deal(plan.items, number, piece_bytes) for number, plan in enumerate(plans)]
    places = {item.index: name for files in dealt for name, items in files.items() for item in items}
    pieces = (_piece(name, items) for name, items in dealt[rank].items())
    return Plan(tuple(pieces), stored_tensors(metadata, places))


def signature(tensors: Mapping[str, Tensor]) -> tuple[object, ...]:
    """Equal for tensors that one plan fits; the same on all ranks or different on all."""
    return tuple((name, t.shape, t.dtype, _sharding(t)) for name, t in tensors.items())


def _sharding(tensor: Tensor) -> object:
    return (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None


def _deal(items: list[WriteItem], rank: int, piece_bytes: int) -> dict[str, list[WriteItem]]:
    """Items of a rank by file, in order, each file full up to `piece_bytes` or of one item."""
    files: list[list[WriteItem]] = []
    room = 0
    for item in items:
        size = _kind(item).bytes
        if not files or size > room:
            files.append([])
            room = piece_bytes
        files[-1].append(item)
        room -= size
    return {f"part-{rank:05d}-{number:05d}.safetensors": held for number, held in enumerate(files)}


def _piece(name: str, items: list[WriteItem]) -> Piece:
    head, places = lay_out({_key(item.index): _kind(item) for item in items})
    chunks = tuple((item.index.fqn, places[_key(item.index)]) for item in items)
    return Piece(name, head, max([len(head), *(place.end for _, place in chunks)]), chunks)


def _kind(item: WriteItem) -> Kind:
    if item.tensor_data is None:
        raise TypeError(f"a checkpoint holds tensors only, not {item.index.fqn}; put it into the state")
    return Kind(item.tensor_data.properties.dtype, tuple(item.tensor_data.chunk.sizes))


def _key(index: MetadataIndex) -> str:
    return chunk_key(index.fqn, index.offset or torch.Size())
