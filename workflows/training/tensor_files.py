"""Sharded tensors to and from any fsspec URL, as storage of torch.distributed.checkpoint: safetensors and JSON.

DCP plans which rank writes which piece and, on another number of ranks, who reads what; this is the storage below
it. Each rank puts one whole safetensors file; the coordinator puts the commit last, if nobody else did.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from workflows.storage import join, put_atomic, read_bytes, sha256, write_json
from workflows.training.commit import Commit, StoredFile, chunk_key, commit_name, stored_tensors


@dataclass(frozen=True, slots=True)
class _Written:
    """What a rank tells the coordinator of a chunk: its file."""

    file: StoredFile


class TensorWriter(StorageWriter):
    """Writes the checkpoint of `step` below `root` into `directory` and commits it.

    A commit of that step that is there already stays, unless `replace`; on the coordinator `committed` tells.
    """

    def __init__(
        self, root: str, directory: str, step: int, state: Mapping[str, Any], *, replace: bool = False
    ) -> None:
        self._root, self._directory, self._step, self._state = root, directory, step, state
        self._replace, self.committed = replace, False

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between checkpoints."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Gives every rank's file its name."""
        names = (f"part-{number:05d}.safetensors" for number in range(len(plans)))
        return [
            SavePlan(p.items, storage_data=name, planner_data=p.planner_data)
            for p, name in zip(plans, names, strict=True)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Puts this rank's pieces as one object."""
        tensors = {
            chunk_key(item.index.fqn, item.index.offset or ()): _plain(planner.resolve_data(item))
            for item in plan.items
        }
        data = save_tensors(tensors)
        put_atomic(join(self._root, self._directory, plan.storage_data), data)
        file = StoredFile(plan.storage_data, len(data), sha256(data))
        results: Future[list[WriteResult]] = Future()
        results.set_result([WriteResult(item.index, 0, _Written(file)) for item in plan.items])
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Puts the commit, if there is none of this step yet."""
        written = {r.index: r.storage_data.file for part in results for r in part}
        files = tuple(sorted(set(written.values()), key=lambda file: file.name))
        tensors = stored_tensors(metadata, {index: file.name for index, file in written.items()})
        commit = Commit(self._step, self._directory, files, tensors, self._state)
        url = join(self._root, "commits", commit_name(self._step))
        self.committed = write_json(url, commit.to_json(), if_absent=not self._replace)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """The URL is given to the constructor, not as an id."""
        return False


class TensorReader(StorageReader):
    """Reads the tensors of a commit; files are checked against its digests by `check`, not here."""

    def __init__(self, root: str, commit: Commit) -> None:
        self._root, self._commit = root, commit
        self._places: Mapping[MetadataIndex, str] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between checkpoints."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the commit says of its tensors."""
        return self._commit.metadata()

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Takes note of where chunks lie."""
        self._places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copies what the plan asks for, one file at a time."""
        items = sorted(plan.items, key=lambda item: self._places[item.storage_index])
        name, held = "", dict[str, torch.Tensor]()
        for item in items:
            if self._places[item.storage_index] != name:
                name = self._places[item.storage_index]
                held = load_tensors(read_bytes(join(self._root, self._commit.directory, name)))
            chunk = held[chunk_key(item.storage_index.fqn, item.storage_index.offset or ())]
            box = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True))
            target = planner.resolve_tensor(item).detach()
            target.copy_(chunk[box])
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """The URL is given to the constructor, not as an id."""
        return False


def check(root: str, commit: Commit, files: tuple[StoredFile, ...]) -> str | None:
    """Why one of `files` is not what the commit says, or None."""
    for file in files:
        url = join(root, commit.directory, file.name)
        try:
            data = read_bytes(url)
        except Exception as error:
            return str(error)
        if sha256(data) != file.sha256:
            return f"{url}: {len(data)} bytes that differ from the digest in the commit"
    return None


def _plain(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"a checkpoint holds tensors only, not {type(value).__name__}")
    return value.detach().cpu().contiguous().clone()
