"""Checkpoints of a run: written while training goes on, committed whole, the newest sound one found on start."""

import logging
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from workflows.errors import OneFlowError
from workflows.storage import delete, join, list_urls, read_json
from workflows.training.commit import NAME, Commit, CommitError, commit_name
from workflows.training.tensor_files import TensorReader, TensorWriter, check

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a checkpoint gave back beside the tensors."""

    step: int
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints below `root`, written and read by all ranks of the default process group together.

    `keep` committed ones are kept. Every method that says so must be called by all ranks, in the same order.
    """

    def __init__(self, root: str, keep: int) -> None:
        self._root, self._keep = root, keep
        self._group = dist.new_group(backend="gloo")
        self._attempt = _agree(secrets.token_hex(4), self._group)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._unsound: set[int] = set()

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Copy `tensors` and write them in the background with `state` (JSON). All ranks.

        The one before is waited for. OneFlowError when that failed.
        """
        self.wait()
        staged = BlockingAsyncStager().stage(dict(tensors))
        arguments = (step, staged, dict(state))
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until what was saved is committed; OneFlowError when it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, OneFlowError):
                raise error
            mend = "see whether the URL can be written; training resumes from the last commit"
            raise OneFlowError(f"checkpoint at {self._root}", str(error), mend) from error

    def restore(self, tensors: Mapping[str, Tensor], before: int | None = None) -> Restored | None:
        """Fill `tensors` in place from the newest sound checkpoint; None when there is none. All ranks.

        With `before` only those of fewer steps count.
        One whose files are gone or damaged is passed over with a warning; what is not committed is not seen.
        """
        for step in _agree(committed_steps(self._root) if dist.get_rank() == 0 else [], self._group):
            commit = self._sound(step) if before is None or step < before else None
            if commit is not None:
                reader = TensorReader(self._root, commit)
                planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
                dcp.load(dict(tensors), storage_reader=reader, planner=planner, process_group=self._group)
                return Restored(commit.step, commit.state)
        return None

    def close(self) -> None:
        """Wait for the last one. All ranks."""
        self.wait()
        dist.destroy_process_group(self._group)

    def _write(self, step: int, staged: dict[str, Any], state: Mapping[str, Any]) -> None:
        try:
            directory = f"step-{step:09d}-{self._attempt}"
            writer = TensorWriter(self._root, directory, step, state, replace=step in self._unsound)
            planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
            dcp.save(staged, storage_writer=writer, planner=planner, process_group=self._group)
            if dist.get_rank() == 0:
                self._tidy(None if writer.committed else directory)
        except BaseException as error:
            self._error = error

    def _tidy(self, unused: str | None) -> None:
        """Remove `unused` and all but the newest `keep`: the commit first, so that no commit lacks its files."""
        try:
            if unused:
                delete(join(self._root, unused), recursive=True)
            for step in committed_steps(self._root)[self._keep :]:
                url = join(self._root, "commits", commit_name(step))
                directory = read_json(url)["directory"]
                delete(url)
                delete(join(self._root, directory), recursive=True)
        except OneFlowError as error:
            log.warning("old checkpoints were not removed: %s", error)

    def _sound(self, step: int) -> Commit | None:
        """The commit of `step` when every file is what it says; ranks share the reading."""
        url = join(self._root, "commits", commit_name(step))
        commit: Commit | None = None
        try:
            commit = Commit.from_json(read_json(url))
            rank, world = dist.get_rank(), dist.get_world_size()
            wrong = check(self._root, commit, commit.files[rank::world])
        except (CommitError, OneFlowError) as error:
            wrong = str(error)
        if wrong:
            log.warning("checkpoint of step %d is passed over: %s", step, wrong)
        sound = torch.tensor(int(wrong is None))
        dist.all_reduce(sound, dist.ReduceOp.MIN, group=self._group)
        if sound.item():
            return commit
        self._unsound.add(step)
        return None


def committed_steps(root: str) -> list[int]:
    """Steps that have a commit below `root`, newest first."""
    found = (NAME.search(url) for url in list_urls(join(root, "commits", "*.json")))
    return sorted((int(match.group(1)) for match in found if match), reverse=True)


def _agree(value: Any, group: dist.ProcessGroup) -> Any:
    """Rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]
