"""The adaptive schedule of a run: which table each step is corrupted under, and the statistics behind the next one.

Steps are cut into blocks of `objective.adaptive_every`. When a block is over, its statistics are summed over all
workers and the table of the block after the next is fitted; blocks 0 and 1 are linear. So a table is there a whole
block before the first step that needs it, as preparing steps ahead asks for, and every pack stays a function of
corpora, config, step and the statistics in the checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from oneflow_core.flows.adaptive import BINS, fit, tally
from oneflow_core.flows.schedule import Linear, Table, build_schedule
from oneflow_core.objectives import ObjectiveConfig
from oneflow_core.packing import Pack
from workflows.training.parallel import Worker


class Pace:
    """Tables by block; for any other schedule than adaptive it has none and does nothing.

    What says so must be called by all ranks; they then hold the same tables.
    """

    def __init__(self, config: ObjectiveConfig, worker: Worker) -> None:
        self._config, self._worker = config, worker
        self._on = config.schedule == "adaptive"
        self._tables: dict[int, Table] = {}
        self._sums_3B = np.zeros((3, BINS))
        self._block_3B = torch.zeros(3, BINS, dtype=torch.float64, device=worker.device)

    def schedule_at(self, step: int) -> Linear | Table | None:
        """kappa of a step, from 0; None: the config's own.

        Raises:
            LookupError: the table is not fitted yet, as more steps are read ahead than a block has.
        """
        block = step // self._config.adaptive_every
        if not self._on:
            return None
        if block < 2:
            return Linear()
        if block not in self._tables:
            raise LookupError(
                f"no table for step {step}; raise objective.adaptive_every above data.read_ahead"
            )
        return self._tables[block]

    def name_at(self, step: int) -> str:
        """The schedule of a step by the name that a sampler takes."""
        schedule = self.schedule_at(step)
        return (
            schedule.name if isinstance(schedule, Table) else "linear" if self._on else self._config.schedule
        )

    def metrics(self, step: int) -> dict[str, float]:
        """What is kept of a text at three times, under the table of a step."""
        schedule = self.schedule_at(step)
        if schedule is None:
            return {}
        return {f"train/kappa/{t}": float(schedule.kappa(np.array(t))) for t in (0.25, 0.5, 0.75)}

    def add(self, step: int, pack: Pack, nll_K: Tensor) -> None:
        """Note the losses of a pack of `step`, which lies on the CPU still. No wait for the device."""
        if (schedule := self.schedule_at(step)) is not None:
            self._block_3B += tally(schedule, pack.clock_K.numpy(), nll_K) / self._worker.tensor

    def after(self, steps: int) -> None:
        """`steps` are done: fit a table where that ends a block. All ranks."""
        block, rest = divmod(steps, self._config.adaptive_every)
        if not self._on or rest:
            return
        self._gather()
        dist.broadcast(self._block_3B, src=0)
        self._sums_3B = self._config.adaptive_memory * self._sums_3B + self._block_3B.cpu().numpy()
        self._block_3B.zero_()
        kept = {k: table for k, table in self._tables.items() if k >= block - 1}
        self._tables = {**kept, block + 1: fit(self._sums_3B, self._config.adaptive_share)}

    def state(self) -> dict[str, Any]:
        """JSON to go on from. All ranks."""
        if not self._on:
            return {}
        self._gather()
        tables = {str(block): table.name for block, table in self._tables.items()}
        return {"sums": self._sums_3B.tolist(), "block": self._block_3B.tolist(), "tables": tables}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on after `state`, which is that of rank 0."""
        if not self._on:
            return
        self._sums_3B = np.array(state["sums"])
        if self._worker.leads:
            self._block_3B = torch.tensor(state["block"], dtype=torch.float64, device=self._worker.device)
        read = {int(block): build_schedule(name) for block, name in state["tables"].items()}
        self._tables = {block: table for block, table in read.items() if isinstance(table, Table)}

    def _gather(self) -> None:
        """The sums of the block so far to rank 0; the others begin anew."""
        dist.all_reduce(self._block_3B)
        if not self._worker.leads:
            self._block_3B.zero_()
