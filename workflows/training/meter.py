"""What a training step says of itself, summed on the device and read by the host once in a while."""

import time
from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor

from oneflow_core.data.loader import LoaderStats
from oneflow_core.objectives import LossOutput
from oneflow_core.packing import Pack
from workflows.training.detail import Detail
from workflows.training.parallel import Worker, summed

PART_NAMES = {
    "tokens": "text/ce",
    "rate": "text/rate",
    "zero": "text/zero",
    "delete": "text/delete",
    "rate_regret": "text/rate_regret",
    "image": "image/mse",
}
"""Names in MLflow of the parts of the loss; others keep their own."""
SUM = "loss"


class Meter:
    """Means over the steps since it was last read. `add` costs no wait for the device."""

    def __init__(self, worker: Worker, pack_tokens: int, detail: Detail | None = None) -> None:
        self._worker, self._pack_tokens, self._detail = worker, pack_tokens, detail
        self.local: dict[str, float] = {}
        """What was last read of this worker alone."""
        self._sums: dict[str, Tensor] = {}
        self._norm = torch.zeros((), device=worker.device)
        self._steps = self._skipped = 0
        self._begun = time.perf_counter()
        self._seen = LoaderStats()

    def add(self, pack: Pack, out: LossOutput) -> None:
        """The loss of one pack, which lies on the CPU still, as a share of its step's."""
        for name, value in {SUM: out.total.detach(), **out.parts}.items():
            self._sums[name] = self._sums.get(name, 0) + value
        if self._detail:
            self._detail.add(pack, out)

    def step(self, norm: Tensor) -> None:
        """A step is over; `norm` is that of its gradient."""
        self._norm = self._norm + norm
        self._steps += 1
        if self._detail:
            self._detail.step()

    def skip(self) -> None:
        """A step is over that changed nothing; its losses are not added."""
        self._skipped += 1

    def read(self, stats: LoaderStats) -> dict[str, float]:
        """Metrics of all ranks since the last reading, without losses where all steps were skipped. All ranks."""
        now = time.perf_counter()
        metrics = self._losses() if self._steps else {}
        metrics |= self._speed(stats, now - self._begun, max(self._steps + self._skipped, 1))
        if self._detail:
            metrics |= self._detail.read(now - self._begun)
            self.local |= self._detail.local
        self._sums, self._steps, self._skipped, self._begun = {}, 0, 0, now
        self._norm = torch.zeros_like(self._norm)
        return metrics

    def _losses(self) -> dict[str, float]:
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].float() for name in names])
        dist.all_reduce(sums)
        values = dict(zip(names, (sums / self._steps).tolist(), strict=True))
        metrics = {f"train/{PART_NAMES.get(name, name)}": value for name, value in values.items()}
        metrics["train/grad_norm"] = float(self._norm) / self._steps
        return metrics

    def _speed(self, stats: LoaderStats, seconds: float, steps: int) -> dict[str, float]:
        seen, self._seen = self._seen, _copy(stats)
        refused = stats.refused.total() - seen.refused.total()
        waited = (stats.wait_s - seen.wait_s) / seconds
        self.local = {"speed/step_s": seconds / steps, "speed/data_wait": waited}
        wait, *counts = summed(
            [
                stats.wait_s - seen.wait_s,
                stats.tokens - seen.tokens,
                stats.packs - seen.packs,
                stats.documents - seen.documents,
                refused,
            ]
        )
        tokens, packs, documents, refused_all = (count / self._worker.tensor for count in counts)
        return {
            "speed/tokens_per_s": tokens / seconds,
            "speed/documents_per_s": documents / seconds,
            "speed/step_s": seconds / steps,
            "speed/data_wait": wait / self._worker.world_size / seconds,
            "data/packing": tokens / max(packs * self._pack_tokens, 1),
            "data/refused": refused_all,
        }


def _copy(stats: LoaderStats) -> LoaderStats:
    return LoaderStats(
        stats.steps, stats.packs, stats.documents, stats.tokens, stats.wait_s, Counter(stats.refused)
    )
