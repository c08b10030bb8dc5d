"""The files of a checkpoint on any fsspec URL: several put at once and tried again, read whole or by ranges.

torch.distributed.checkpoint plans which rank writes which piece and, on another number of ranks, who reads what;
this is the storage below it. Files are safetensors of bounded size.
"""

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from oneflow_core.safetensors_layout import Kind, Place, read_places
from workflows.errors import OneFlowError
from workflows.storage import join, put_atomic, read_bytes, sha256, size
from workflows.store_retries import StoreGone
from workflows.training.commit import Chunk, Commit, StoredFile, chunk_key

TRANSFERS = 4
"""Files that a rank has on their way at once."""
BACKOFF_S = 0.25
TRIES = 3
"""Of a file that cannot be put; S3 requests within each are tried for longer (`store_retries`)."""
BLOCK = 16 << 20
"""Bytes of a file that are in memory at once while it is checked or exported."""

Told = tuple[StoredFile, ...] | OneFlowError
"""What a rank says of its files: which it put, or why it could not."""


def put_files(directory: str, files: Mapping[str, Callable[[], memoryview]]) -> tuple[StoredFile, ...]:
    """Put `files` below the URL `directory`, some at once; each is asked for its bytes when its turn comes.

    Raises:
        OneFlowError: one cannot be put.
    """

    def put(name: str) -> StoredFile:
        data = files[name]()
        _put(join(directory, name), data)
        return StoredFile(name, len(data), sha256(data))

    with ThreadPoolExecutor(TRANSFERS, "checkpoint-put") as pool:
        return tuple(pool.map(put, files))


def every_file(told: Sequence[Told]) -> tuple[StoredFile, ...]:
    """The files of all ranks; the OneFlowError of one that could not put its own is raised."""
    files: list[StoredFile] = []
    for said in told:
        if isinstance(said, OneFlowError):
            raise said
        files += said
    return tuple(files)


def _put(url: str, data: memoryview) -> None:
    for tried in range(1, TRIES + 1):
        try:
            put_atomic(url, data)
            return
        except (OneFlowError, OSError) as error:
            if tried == TRIES or isinstance(error.__cause__, StoreGone):
                raise
            time.sleep(random.uniform(0, BACKOFF_S * 2**tried))


def check(root: str, commit: Commit, files: Sequence[StoredFile]) -> str | None:
    """Why one of `files` is not what the commit says, or None.

    Raises:
        OneFlowError: the store does not tell; that is no reason to pass a checkpoint over.
    """
    with ThreadPoolExecutor(TRANSFERS, "checkpoint-check") as pool:
        return next(filter(None, pool.map(lambda file: _wrong(root, commit, file), files)), None)


def _wrong(root: str, commit: Commit, file: StoredFile) -> str | None:
    url, digest = join(root, commit.directory, file.name), hashlib.sha256()
    try:
        if (found := size(url)) != file.bytes:
            return f"{url}: {found} bytes in place of {file.bytes}"
        for begin in range(0, file.bytes, BLOCK):
            digest.update(read_bytes(url, begin, min(begin + BLOCK, file.bytes)))
    except OneFlowError as error:
        if not tells_of_damage(error):
            raise
        return str(error)
    if digest.hexdigest() != file.sha256:
        return f"{url}: {file.bytes} bytes that differ from the digest in the commit"
    return None


def tells_of_damage(error: OneFlowError) -> bool:
    """Whether an object is gone or no JSON; not so where the store is away or refuses to answer."""
    return error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError)


class StoredTensors:
    """The tensors of a commit whose names begin with `prefix`, named without it and read one by one.

    Whoever wants digests checked calls `check` before.
    """

    def __init__(self, root: str, commit: Commit, prefix: str = "") -> None:
        self._root, self._commit, self._prefix = root, commit, prefix
        self._places: dict[str, dict[str, Place]] = {}

    def kinds(self) -> dict[str, Kind]:
        """Dtype and shape of each."""
        return {
            name.removeprefix(self._prefix): Kind(getattr(torch, tensor.dtype), tensor.shape)
            for name, tensor in self._commit.tensors.items()
            if name.startswith(self._prefix)
        }

    def read(self, name: str) -> Tensor:
        """A whole tensor. In memory are it, its largest chunk and one block."""
        name = self._prefix + name
        stored = self._commit.tensors[name]
        if len(stored.chunks) == 1:
            return self._chunk(name, stored.chunks[0])
        whole = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
        for chunk in stored.chunks:
            box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
            whole[box].copy_(self._chunk(name, chunk))
        return whole

    def _chunk(self, name: str, chunk: Chunk) -> Tensor:
        url = join(self._root, self._commit.directory, chunk.file)
        if chunk.file not in self._places:
            self._places[chunk.file] = read_places(lambda a, b: read_bytes(url, a, b))
        places = self._places[chunk.file]
        key = chunk_key(name, chunk.offsets)
        # The single file of best weights, as earlier versions wrote it, has whole tensors under their names.
        place = places[key] if key in places else places[name]
        data = torch.empty(place.kind.bytes, dtype=torch.uint8)
        room = data.numpy().data
        for begin in range(0, len(room), BLOCK):
            end = min(begin + BLOCK, len(room))
            room[begin:end] = read_bytes(url, place.begin + begin, place.begin + end)
        return data.view(place.kind.dtype).view(place.kind.shape)


class TensorReader(StorageReader):
    """Reads the tensors of a commit as DCP plans it; files are checked against its digests by `check`, not here."""

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
        name, held, places = "", b"", dict[str, Place]()
        for item in items:
            if self._places[item.storage_index] != name:
                name = self._places[item.storage_index]
                held = read_bytes(join(self._root, self._commit.directory, name))
                places = _places_in(held)
            key = chunk_key(item.storage_index.fqn, item.storage_index.offset or ())
            box = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True))
            target = planner.resolve_tensor(item).detach()
            target.copy_(_tensor(held, places[key])[box])
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """The URL is given to the constructor, not as an id."""
        return False


def _places_in(data: bytes) -> dict[str, Place]:
    return read_places(lambda begin, end: data[begin:end])


def _tensor(data: bytes, place: Place) -> Tensor:
    """A tensor of a file's bytes; not to be written to, as it shares them."""
    if not place.kind.bytes:
        return torch.empty(place.kind.shape, dtype=place.kind.dtype)
    values = bytearray(memoryview(data)[place.begin : place.end])
    return torch.frombuffer(values, dtype=place.kind.dtype).view(place.kind.shape)
