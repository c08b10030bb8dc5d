"""What `watch.detail: full` tells of the steps: losses by time, norms by part, FLOP/s, memory and the machine.

All is summed where it arises, on the device, and read by the host when metrics are logged.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from oneflow_core.flops import NeededFlops
from oneflow_core.metrics.time_bins import BINS, CENTRES, loss_by_time
from oneflow_core.model import OneFlowModel
from oneflow_core.objectives import LossOutput, Objective
from oneflow_core.packing import Pack
from workflows.device_rate import peak_rate
from workflows.training.config import ComputeSettings
from workflows.training.host import Host, of_all
from workflows.training.optimiser import Optimiser
from workflows.training.parallel import Worker, rows_of_all


class Detail:
    """Sums over the steps since it was last read."""

    def __init__(
        self,
        model: OneFlowModel,
        objective: Objective,
        optimiser: Optimiser,
        worker: Worker,
        compute: ComputeSettings,
    ) -> None:
        self._worker, self._optimiser = worker, optimiser
        self._text = objective.config.kind != "transfusion"
        self._needed, self._host = NeededFlops.of(model), Host(worker.device)
        dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
        self._peak = peak_rate(worker.device, dtype)
        self._bins: dict[str, Tensor] = {}
        self._norms = torch.zeros(len(optimiser.groups.names), device=worker.device)
        self._flops, self._steps = 0.0, 0
        self.local: dict[str, float] = {}
        """What was last read of this worker alone."""

    def add(self, pack: Pack, out: LossOutput) -> None:
        """A pack of the step, which lies on the CPU still. No wait for the device."""
        self._flops += self._needed.of_pack(pack) / self._worker.tensor
        for name, sums_2B in loss_by_time(pack, out, text=self._text).items():
            self._bins[name] = self._bins[name].add_(sums_2B) if name in self._bins else sums_2B

    def step(self) -> None:
        """The optimiser has stepped."""
        self._norms += self._optimiser.group_norms
        self._steps += 1

    def read(self, seconds: float) -> dict[str, float]:
        """Metrics of all ranks, `seconds` after the last reading. All ranks must call it."""
        names, groups = sorted(self._bins), self._optimiser.groups.names
        none = torch.zeros(0, dtype=torch.float64, device=self._worker.device)
        sums = torch.cat([none, *(self._bins[name].flatten() for name in names)])
        dist.all_reduce(sums)
        weights = self._optimiser.weight_norms()
        told = torch.cat([sums, self._norms.double(), weights.double()]).tolist()
        metrics = bin_metrics({name: told[i * 2 * BINS : (i + 1) * 2 * BINS] for i, name in enumerate(names)})
        norms, weight_norms = told[-2 * len(groups) : -len(groups)], told[-len(groups) :]
        for group, norm, weight in zip(groups, norms, weight_norms, strict=True):
            metrics[f"grad_norm/{group}"] = norm / max(self._steps, 1)
            metrics[f"weight_norm/{group}"] = weight
        metrics |= self._machines(seconds)
        self._bins, self._flops, self._steps = {}, 0.0, 0
        self._norms = torch.zeros_like(self._norms)
        return metrics

    def _machines(self, seconds: float) -> dict[str, float]:
        self.local = self._host.read()
        rows = rows_of_all(self._worker, [self._flops, self._peak, *self._host.row(self.local)])
        rate, peak = sum(row[0] for row in rows) / seconds, sum(row[1] for row in rows)
        speed = {
            "speed/tflops": rate / 1e12,
            "speed/peak_tflops": peak / 1e12,
            "speed/mfu": rate / peak,
        }
        return speed | of_all([row[2:] for row in rows])


def bin_metrics(bins: Mapping[str, list[float]]) -> dict[str, float]:
    """Means by time from the two sums of each bin, without bins that nothing fell into."""
    return {
        f"bins/{name}/t{centre:.1f}": value / weight
        for name, sums in bins.items()
        for centre, weight, value in zip(CENTRES, sums[:BINS], sums[BINS:], strict=True)
        if weight
    }
