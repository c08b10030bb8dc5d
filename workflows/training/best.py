"""The best weights of a run so far: pieces that all ranks put, and one object, put last, that says where they lie."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor

from oneflow_core.safetensors_layout import LayoutError, read_places
from workflows.errors import OneFlowError
from workflows.storage import (
    delete,
    exists,
    join,
    list_directories,
    read_bytes,
    read_json,
    sha256,
    size,
    write_json,
)
from workflows.training.commit import Chunk, Commit, CommitError, StoredFile, StoredTensor
from workflows.training.objects import from_first, to_first
from workflows.training.plan import PIECE_BYTES, Plan, agree
from workflows.training.staging import piece_bytes
from workflows.training.tensor_files import StoredTensors, Told, check, every_file, put_files

POINTER = "best.json"


@dataclass(frozen=True, slots=True)
class Best:
    """Averaged weights after `step`, and the held-out loss that chose them (None: nothing was held out)."""

    step: int
    loss: float | None
    commit: Commit
    """Where they lie."""
    schedule: str | None = None
    """Name of the kappa that they were last trained under; None in what earlier versions wrote."""

    @property
    def sha256(self) -> str:
        """Of the digests of all files: another one for other weights."""
        return sha256(json.dumps([[file.name, file.sha256] for file in self.commit.files]).encode())

    def beats(self, other: "Best | None") -> bool:
        """Lower held-out loss; the later of two that have none, or that are equal."""
        if other is None or self.loss is None or other.loss is None:
            return True
        return self.loss <= other.loss


def read_best(root: str) -> Best | None:
    """The best so far below `root`, or None; also what earlier versions wrote."""
    url = join(root, POINTER)
    if not exists(url):
        return None
    tree: dict[str, Any] = read_json(url)
    try:
        commit = Commit.from_json(tree["commit"]) if "commit" in tree else _one_file(root, tree)
        return Best(int(tree["step"]), tree["loss"], commit, tree.get("schedule"))
    except (KeyError, CommitError, LayoutError) as error:
        raise OneFlowError(
            url, f"it names no weights: {error}", "remove it and resume the training"
        ) from None


def write_best(
    root: str, step: int, loss: float | None, weights: Mapping[str, Tensor], schedule: str | None = None
) -> Best:
    """Put `weights` if they beat what is there; returns the best after it. All ranks, each with its shards.

    Tensors that are not sharded are taken from one rank. Files are made one by one: nothing is held twice.

    Raises:
        OneFlowError: on every rank, if one cannot put its files.
    """
    before = from_first(_before(root) if dist.get_rank() == 0 else None)
    if isinstance(before, OneFlowError):
        raise before
    if not Best(step, loss, Commit(step, "", (), {}, {})).beats(before):
        assert before is not None
        return before
    plan = agree(weights, None, PIECE_BYTES)
    directory = from_first(f"best/step-{step:09d}-{secrets.token_hex(4)}")
    told = to_first(_put(join(root, directory), plan, weights))
    best = from_first(
        _point(root, Best(step, loss, Commit(step, directory, (), plan.tensors, {}), schedule), told)
    )
    if isinstance(best, OneFlowError):
        raise best
    if dist.get_rank() == 0:
        _tidy(root, best, before)
    return best


def load_best(root: str) -> tuple[Best, StoredTensors]:
    """The best weights, to be read one by one; OneFlowError when there are none or they are damaged."""
    best = read_best(root)
    if best is None:
        raise OneFlowError(f"training run at {root}", "it has no evaluated weights yet", "train it further")
    if wrong := check(root, best.commit, best.commit.files):
        raise OneFlowError(join(root, POINTER), wrong, "resume the training")
    return best, StoredTensors(root, best.commit)


def _before(root: str) -> Best | OneFlowError | None:
    try:
        return read_best(root)
    except OneFlowError as error:
        return error


def _put(url: str, plan: Plan, weights: Mapping[str, Tensor]) -> Told:
    try:
        return put_files(url, {piece.name: partial(piece_bytes, piece, weights) for piece in plan.pieces})
    except OneFlowError as error:
        return error


def _point(root: str, best: Best, told: list[Told]) -> Best | OneFlowError:
    """Put the pointer to the files of all ranks, on rank 0."""
    if not told:
        return best
    try:
        best = replace(best, commit=replace(best.commit, files=every_file(told)))
        tree = {"step": best.step, "loss": best.loss, "schedule": best.schedule}
        write_json(join(root, POINTER), {**tree, "commit": best.commit.to_json()})
    except OneFlowError as error:
        return error
    return best


def _tidy(root: str, best: Best, before: Best | None) -> None:
    """Remove the weights that were the best before, and what attempts that were killed left of earlier steps."""
    if before and before.commit.directory == "best":
        delete(join(root, "best", before.commit.files[0].name))
    for name in list_directories(join(root, "best")):
        if name < best.commit.directory.removeprefix("best/"):
            delete(join(root, "best", name), recursive=True)


def _one_file(root: str, tree: Mapping[str, Any]) -> Commit:
    """The commit of weights that earlier versions put as one safetensors object."""
    directory, _, name = str(tree["file"]).rpartition("/")
    url = join(root, tree["file"])
    tensors = {}
    for tensor, place in read_places(lambda begin, end: read_bytes(url, begin, end)).items():
        shape = place.kind.shape
        chunk = Chunk((0,) * len(shape), shape, name)
        tensors[tensor] = StoredTensor(str(place.kind.dtype).removeprefix("torch."), shape, (chunk,))
    file = StoredFile(name, size(url), str(tree["sha256"]))
    return Commit(int(tree["step"]), directory, (file,), tensors, {})
