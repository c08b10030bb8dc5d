"""What Prometheus sees of a run: gauges at the metrics port of each Ray node, `ray_` before their names there.

The worker of rank 0 tells of the run, every worker of itself. The number of series is bounded: fixed names and parts,
times workers; MLflow has the rest. `infra/monitoring` has the dashboard and the alerts that read them.
"""

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from workflows.training.config import TrainConfig
from workflows.training.loop import Reading

GIB = 2**30
REPEAT_S = 5.0
TAGS = ("run", "experiment", "rank", "part")


@dataclass(frozen=True, slots=True)
class Source:
    """The metric of MLflow that a gauge shows."""

    metric: str
    gauge: str
    part: str = ""
    scale: float = 1.0


GAUGES = {
    "oneflow_train_step": "Steps that are done.",
    "oneflow_train_progress_share": "Share of the budget that is used, 0 to 1.",
    "oneflow_train_logged_timestamp_seconds": "When the last metrics were logged.",
    "oneflow_train_log_interval_seconds": "Seconds between the last two logs.",
    "oneflow_train_loss": "Loss, and its parts by name, on training data.",
    "oneflow_train_heldout_loss": "Loss, and its parts by name, on held-out data.",
    "oneflow_train_grad_norm": "Norm of the gradient before clipping; by part of the network.",
    "oneflow_train_learning_rate": "Learning rate.",
    "oneflow_train_tokens_per_second": "Tokens a second, of all workers.",
    "oneflow_train_documents_per_second": "Documents a second, of all workers.",
    "oneflow_train_flops_per_second": "FLOPs a second that the method needs, of all workers.",
    "oneflow_train_mfu_share": "The same by the peak of the devices.",
    "oneflow_train_packing_share": "Share of the packs that is no padding.",
    "oneflow_train_length_ratio": "Tokens of generated captions by those of the true ones.",
    "oneflow_train_goodput_share": "Share of the time spent on steps that counted.",
    "oneflow_train_skipped_steps": "Steps that were skipped as loss or gradient were no numbers.",
    "oneflow_train_checkpoint_step": "Step of the last checkpoint.",
    "oneflow_train_checkpoint_timestamp_seconds": "When it was committed.",
    "oneflow_train_step_seconds": "Seconds a step, of one worker.",
    "oneflow_train_data_wait_share": "Share of the time that one worker waited for data.",
    "oneflow_train_memory_bytes": "Memory of one worker: rss, cuda_allocated, cuda_reserved, cuda_peak.",
}
"""Every gauge by name."""

PARTS = {"loss": "total", "text/ce": "text_ce", "text/rate_regret": "rate_regret", "text/zero": "zero"}
PARTS |= {"text/delete": "delete", "image/mse": "image_mse"}
NORMS = ("embedding", "adapters", "trunk_low", "trunk_middle", "trunk_high", "text_heads", "image_head")
OF_THE_RUN = (
    *(Source(f"train/{metric}", "oneflow_train_loss", part) for metric, part in PARTS.items()),
    *(Source(f"heldout/{metric}", "oneflow_train_heldout_loss", part) for metric, part in PARTS.items()),
    Source("train/grad_norm", "oneflow_train_grad_norm", "total"),
    *(Source(f"grad_norm/{part}", "oneflow_train_grad_norm", part) for part in NORMS),
    Source("train/lr", "oneflow_train_learning_rate"),
    Source("train/progress", "oneflow_train_progress_share"),
    Source("speed/tokens_per_s", "oneflow_train_tokens_per_second"),
    Source("speed/documents_per_s", "oneflow_train_documents_per_second"),
    Source("speed/tflops", "oneflow_train_flops_per_second", scale=1e12),
    Source("speed/mfu", "oneflow_train_mfu_share"),
    Source("data/packing", "oneflow_train_packing_share"),
    Source("samples/length_ratio", "oneflow_train_length_ratio"),
    Source("goodput/share", "oneflow_train_goodput_share"),
    Source("guard/skipped", "oneflow_train_skipped_steps"),
)
OF_A_WORKER = (
    Source("speed/step_s", "oneflow_train_step_seconds"),
    Source("speed/data_wait", "oneflow_train_data_wait_share"),
    *(
        Source(f"memory/{part}_gib", "oneflow_train_memory_bytes", part, GIB)
        for part in ("rss", "cuda_allocated", "cuda_reserved", "cuda_peak")
    ),
)


class Exporter:
    """The gauges of one worker under Ray, from a context's beginning to its end; none of its calls waits or fails.

    Ray drops a gauge that is not set for two of its intervals of 10 s, which is less than steps may take: a thread
    sets all again, so that a worker that hangs is seen with the time of its last step.
    """

    def __init__(self, config: TrainConfig, key: str, rank: int) -> None:
        from ray.util.metrics import Gauge

        self._rank, self._logged_at = rank, time.monotonic()
        self._held: dict[tuple[str, str], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="gauges", daemon=True)
        self._tags = {"run": f"{config.name}-{key[:8]}", "experiment": config.tracking.experiment}
        self._tags |= {"rank": str(rank)}
        self._gauges = {name: Gauge(name, text, TAGS) for name, text in GAUGES.items()}

    def __enter__(self) -> "Exporter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def logged(self, reading: Reading) -> None:
        """Metrics were logged."""
        self._show(OF_A_WORKER, reading.local)
        if self._rank:
            return
        self._show(OF_THE_RUN, reading.metrics)
        now, before = time.monotonic(), self._logged_at
        self._logged_at = now
        self._set("oneflow_train_step", reading.step)
        self._set("oneflow_train_logged_timestamp_seconds", time.time())
        self._set("oneflow_train_log_interval_seconds", now - before)

    def committed(self, pointer: Mapping[str, Any]) -> None:
        """A checkpoint was committed."""
        if not self._rank:
            self._set("oneflow_train_checkpoint_step", pointer["step"])
            self._set("oneflow_train_checkpoint_timestamp_seconds", time.time())

    def _show(self, sources: tuple[Source, ...], metrics: Mapping[str, float]) -> None:
        for source in sources:
            if source.metric in metrics:
                self._set(source.gauge, metrics[source.metric] * source.scale, source.part)

    def _set(self, gauge: str, value: float, part: str = "") -> None:
        if math.isfinite(value):
            self._held[gauge, part] = value
            self._gauges[gauge].set(value, {**self._tags, "part": part})

    def _repeat(self) -> None:
        while not self._over.wait(REPEAT_S):
            for (gauge, part), value in self._held.copy().items():
                self._gauges[gauge].set(value, {**self._tags, "part": part})
