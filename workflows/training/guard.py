"""Which steps count: one whose loss or gradient is no number, or whose loss jumps, must leave no trace.

Such a step is skipped on all ranks alike: parameters, moments and average stay what they are, bit for bit, and its
losses enter no mean. OLMo-core skips steps that way; PaLM (arXiv 2204.02311, section 5.1) went back to an earlier
checkpoint and left out the batches since. Both are here: a few bad steps are skipped, many in a row are rolled back.
"""

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workflows.errors import OneFlowError
from workflows.training.config import GuardSettings

log = logging.getLogger(__name__)

NORMAL = 1.4826
"""Standard deviations of a normal law in its median distance from the median."""


class Diverged(OneFlowError):
    """Steps go wrong again and again; checkpoints from before are kept."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A step that was refused."""

    step: int
    """From 0: this many came before it."""
    reason: str
    loss: float
    """Of the global batch."""
    norm: float
    """Of the global gradient."""


class Guard:
    """Judges every step, and keeps count. All ranks hold the same, as they judge the same two numbers.

    What says so must be called by all ranks.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self.fault: Fault | None = None
        """The last step's, or None when it was accepted."""
        self.applied = self.skipped = self.streak = 0
        """Steps that the parameters took; bad steps of the run; bad steps since the last accepted one."""
        self.windows: list[list[int]] = []
        """[first, last] of the steps that each rollback undid: their data is not read again."""
        self._losses: deque[float] = deque(maxlen=settings.spike_window)

    def accepts(self, step: int, loss: Tensor, norm: Tensor) -> bool:
        """Whether a step may be taken; `loss` is this rank's share, `norm` the global gradient's. All ranks.

        One reduction of a scalar, and on a GPU one wait for the backward pass: what follows a step cannot be known
        before its norm is (docs/decisions/0019).
        """
        total = loss.detach().float().clone()
        dist.all_reduce(total)
        values = torch.stack([total, norm.float()]).tolist()
        self.fault = self._fault(step, *values)
        if self.fault:
            self.skipped, self.streak = self.skipped + 1, self.streak + 1
            log.warning("step %d is skipped: %s", step, self.fault.reason)
            return False
        self.applied, self.streak = self.applied + 1, 0
        if self._settings.spike_factor:
            self._losses.append(values[0])
        return True

    def _fault(self, step: int, loss: float, norm: float) -> Fault | None:
        reason = None
        if not math.isfinite(loss):
            reason = f"the loss is {loss}"
        elif not math.isfinite(norm):
            reason = f"the norm of the gradient is {norm}"
        elif (limit := self._limit()) is not None and loss > limit:
            reason = f"the loss jumps to {loss:.4g}, above {limit:.4g}"
        return Fault(step, reason, loss, norm) if reason else None

    def _limit(self) -> float | None:
        """Loss above which a step is a spike; None while too few were seen."""
        factor, losses = self._settings.spike_factor, self._losses
        if not factor or len(losses) < self._settings.spike_window:
            return None
        middle = median(losses)
        return middle + factor * NORMAL * median(abs(loss - middle) for loss in losses)

    @property
    def keeps(self) -> bool:
        """Whether the last bad step's pack is to be stored."""
        return self.skipped <= self._settings.max_dumps

    @property
    def exhausted(self) -> bool:
        """Whether so many steps in a row were bad that an earlier checkpoint is to be taken.

        Raises:
            Diverged: that was done as often as it may be.
        """
        if self.streak < self._settings.max_skips:
            return False
        if len(self.windows) >= self._settings.max_rollbacks:
            raise self.diverged(f"{len(self.windows)} rollbacks did not help")
        return True

    @property
    def first_bad(self) -> int:
        """The step with which the present row of bad ones began."""
        assert self.fault
        return self.fault.step - self.streak + 1

    def rolled_back(self, step: int, state: Mapping[str, Any]) -> None:
        """The weights are those of `step` again, whose checkpoint had `state`; what was read stays read."""
        assert self.fault
        self.windows.append([step, self.fault.step])
        self.applied, self.streak = applied_steps(step, state), 0
        log.warning("back to the weights after step %d; going on behind step %d", step, self.fault.step)

    def diverged(self, cause: str) -> Diverged:
        """Why the run cannot go on."""
        assert self.fault
        told = f"{self.fault.reason}, {self.streak} steps in a row, and {cause}"
        mend = (
            "lower optimiser.lr or raise optimiser.warmup_steps, and look at what oneflow train --replay says"
        )
        return Diverged(f"step {self.fault.step}", told, mend)

    def metrics(self) -> dict[str, float]:
        """Counts of the run so far."""
        return {"guard/skipped": float(self.skipped), "guard/rollbacks": float(len(self.windows))}

    def state(self) -> dict[str, Any]:
        """JSON to go on from."""
        counts = {"applied": self.applied, "skipped": self.skipped, "streak": self.streak}
        return {**counts, "windows": self.windows, "losses": list(self._losses)}

    def load_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on after a checkpoint of `step`; those of earlier versions have nothing about it."""
        held = state.get("guard", {})
        self.applied = applied_steps(step, state)
        self.skipped, self.streak = held.get("skipped", 0), held.get("streak", 0)
        self.windows = [list(window) for window in held.get("windows", [])]
        self._losses.clear()
        self._losses.extend(held.get("losses", []))


def applied_steps(step: int, state: Mapping[str, Any]) -> int:
    """Steps that the parameters of a checkpoint took."""
    return int(state.get("guard", {}).get("applied", step))
