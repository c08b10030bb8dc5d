"""Checkpoints of a run: written while training goes on, committed whole, the newest sound one found on start."""

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from workflows.errors import OneFlowError
from workflows.storage import join, read_json, write_json
from workflows.training.commit import Commit, CommitError, commit_name
from workflows.training.objects import from_first, to_first
from workflows.training.plan import PIECE_BYTES, Plan, agree, signature
from workflows.training.retention import Attempt, Retention, TakenOver, committed_steps
from workflows.training.staging import Stage
from workflows.training.tensor_files import TensorReader, Told, check, every_file, put_files, tells_of_damage

__all__ = ["Checkpoints", "Restored", "Saved", "committed_steps"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a checkpoint gave back beside the tensors."""

    step: int
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that was committed, or lost to a commit that was there."""

    step: int
    seconds: float
    """From `save` to the commit."""
    blocked_s: float
    """What training waited for it: in `save`, where the one before may not be done, and in `staged`."""
    bytes: int
    """Of all tensors."""


class Checkpoints:
    """The checkpoints below `root`, written and read by all ranks of the default process group together.

    The newest `keep` are kept, and those of steps that `keep_every` divides. A save that fails is told and counted;
    `max_failed` in a row are an error. Every method that says so must be called by all ranks, in the same order.
    """

    def __init__(
        self,
        root: str,
        keep: int,
        *,
        keep_every: int | None = None,
        max_failed: int = 3,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._root, self._max_failed, self._piece_bytes = root, max_failed, piece_bytes
        self._group = dist.new_group(backend="gloo")
        self._attempt = Attempt(root, from_first(secrets.token_hex(4), self._group))
        self._retention = Retention(root, keep, keep_every, self._attempt)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._unsound: set[int] = set()
        self._plan: Plan | None = None
        self._stage: Stage | None = None
        self._signature: tuple[object, ...] = ()
        self._saves, self._in_a_row, self._blocked_s = 0, 0, 0.0
        self._problem: OneFlowError | None = None
        self.failed = 0
        """Saves that failed so far."""
        self.last: Saved | None = None
        """The last one that did not."""

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Plan for such tensors and begin to make memory ready, so that the first save need not. All ranks."""
        if self._signature != signature(tensors):
            self.wait()
            if self._stage:
                self._stage.close()
            self._plan = agree(tensors, self._group, self._piece_bytes)
            devices = {t.device for t in tensors.values()}
            device = next((d for d in devices if d.type == "cuda"), torch.device("cpu"))
            self._stage, self._signature = Stage(self._plan.pieces, device), signature(tensors)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Begin to write `tensors` in the background with `state` (JSON). All ranks.

        Call `staged` before the tensors change. The save before is waited for.

        Raises:
            OneFlowError: the last `max_failed` saves failed, or a later attempt of this run has begun.
        """
        begun = time.monotonic()
        self.wait()
        self.prepare(tensors)
        assert self._stage is not None
        self._stage.open()
        self._saves += 1
        directory = self._attempt.directory(step, self._saves)
        arguments = (step, directory, dict(tensors), dict(state), begun)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()
        self._blocked_s = time.monotonic() - begun

    def staged(self) -> None:
        """Return when what was saved may change; on a GPU the current stream waits, not the caller."""
        if self._stage is not None:
            begun = time.monotonic()
            self._stage.wait()
            self._blocked_s += time.monotonic() - begun

    @property
    def saving(self) -> bool:
        """Whether a save is on its way."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until what was saved is committed or given up; OneFlowError as `save`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        if self._problem and self._in_a_row >= self._max_failed:
            often = f"{self._in_a_row} saves in a row failed, the last because: {self._problem}"
            mend = "see whether the URL can be written; the same command goes on from the last commit"
            raise OneFlowError(f"checkpoints at {self._root}", often, mend)

    def restore(self, tensors: Mapping[str, Tensor], before: int | None = None) -> Restored | None:
        """Fill `tensors` in place from the newest sound checkpoint; None when there is none. All ranks.

        With `before` only those of fewer steps count.
        One whose files are gone or damaged is passed over with a warning; what is not committed is not seen.

        Raises:
            OneFlowError: the store does not answer.
        """
        self.wait()
        self.prepare(tensors)
        for step in from_first(committed_steps(self._root) if dist.get_rank() == 0 else [], self._group):
            commit = self._sound(step) if before is None or step < before else None
            if commit is not None:
                reader = TensorReader(self._root, commit)
                planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
                dcp.load(dict(tensors), storage_reader=reader, planner=planner, process_group=self._group)
                return Restored(commit.step, commit.state)
        return None

    def metrics(self) -> dict[str, float]:
        """Of the last save, and how many failed."""
        told = {"checkpoint/failed": float(self.failed)}
        if self.last:
            told["checkpoint/save_s"] = self.last.seconds
            told["checkpoint/blocked_s"] = self.last.blocked_s
            told["checkpoint/mb"] = self.last.bytes / 1e6
        return told

    def close(self) -> None:
        """Wait for the last one. All ranks.

        Raises:
            OneFlowError: it failed, so that the run's end would be lost.
        """
        self._max_failed = 1
        self.wait()
        if self._stage is not None:
            self._stage.close()
        dist.destroy_process_group(self._group)

    def _write(
        self, step: int, directory: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any], begun: float
    ) -> None:
        """All of a save but the planning; in its own thread."""
        try:
            told = to_first(self._put(directory, tensors), self._group)
            self._problem = from_first(self._commit(step, directory, told, state), self._group)
            if isinstance(self._problem, TakenOver):
                raise self._problem
            if self._problem:
                self.failed, self._in_a_row = self.failed + 1, self._in_a_row + 1
                log.warning("the checkpoint of step %d was not written: %s", step, self._problem)
                return
            assert self._plan is not None
            self._in_a_row = 0
            self.last = Saved(step, time.monotonic() - begun, self._blocked_s, self._plan.bytes)
            if dist.get_rank() == 0:
                self._retention.tidy()
        except BaseException as error:
            self._error = error

    def _put(self, directory: str, tensors: Mapping[str, Tensor]) -> Told:
        """This rank's files, or why they could not be put."""
        assert self._stage is not None
        try:
            self._stage.copy(tensors)
            if dist.get_rank() == 0:
                self._attempt.begin()
            return put_files(join(self._root, directory), self._stage.files())
        except Exception as error:
            return _explained(f"rank {dist.get_rank()}", error)

    def _commit(
        self, step: int, directory: str, told: list[Told], state: Mapping[str, Any]
    ) -> OneFlowError | None:
        """Put the commit, if there is none of this step yet, and every rank's files are there; or say why not."""
        if not told:
            return None
        assert self._plan is not None
        try:
            files = every_file(told)
            self._attempt.check()
            commit = Commit(step, directory, files, self._plan.tensors, state)
            url = join(self._root, "commits", commit_name(step))
            if not write_json(url, commit.to_json(), if_absent=step not in self._unsound):
                self._retention.unused.append(directory)
            return None
        except Exception as error:
            self._retention.unused.append(directory)
            return _explained(f"commit of step {step}", error)

    def _sound(self, step: int) -> Commit | None:
        """The commit of `step` when every file is what it says; ranks share the reading."""
        url = join(self._root, "commits", commit_name(step))
        commit: Commit | None = None
        try:
            commit = Commit.from_json(read_json(url))
            rank, world = dist.get_rank(), dist.get_world_size()
            wrong = check(self._root, commit, commit.files[rank::world])
        except CommitError as error:
            wrong = str(error)
        except OneFlowError as error:
            if not tells_of_damage(error):
                raise
            wrong = str(error)
        if wrong:
            log.warning("checkpoint of step %d is passed over: %s", step, wrong)
        sound = torch.tensor(int(wrong is None))
        dist.all_reduce(sound, dist.ReduceOp.MIN, group=self._group)
        if sound.item():
            return commit
        self._unsound.add(step)
        return None


def _explained(what: str, error: Exception) -> OneFlowError:
    if isinstance(error, OneFlowError):
        return error
    return OneFlowError(what, f"{type(error).__name__}: {error}", "see the log of that worker")
