"""The inner loop of a worker: plain torch.distributed, under Ray and under torchrun alike.

Every step: read packs, agree on normalisers and time, pass forward and backward, step, average. What a step reads
and how it is corrupted is a function of the seed and of what was consumed, so a checkpoint needs no generator's
state and a resumed run goes on as if nothing had happened.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from oneflow_core.data.state import join_states
from oneflow_core.packing import Pack
from workflows.errors import OneFlowError
from workflows.storage import join
from workflows.tracking import Tracker
from workflows.training.average import averaged, gathered, whole_tensors
from workflows.training.best import Best, read_best, write_best
from workflows.training.checkpoint import Checkpoints
from workflows.training.config import TrainConfig
from workflows.training.heldout import HeldOut
from workflows.training.materials import Materials
from workflows.training.meter import Meter
from workflows.training.optimiser import Optimiser
from workflows.training.pace import Pace
from workflows.training.parallel import Worker, last_microstep, shard, summed
from workflows.training.samples import Gallery
from workflows.training.schedule import ema_decay, learning_rate, progress

log = logging.getLogger(__name__)


class Diverged(OneFlowError):
    """The loss is no number any more; checkpoints from before are kept."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; `metrics` are the latest."""

    step: int
    steps: int
    done: float
    """Share of the budget, 0 to 1."""
    elapsed_s: float
    eta_s: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who is told what; all optional."""

    progress: Callable[[Progress], None] = field(default=lambda _: None)
    """Rank 0, at every logged step."""
    committed: Callable[[Mapping[str, Any]], None] = field(default=lambda _: None)
    """All ranks, at every checkpoint, with a pointer to it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    step: int
    elapsed_s: float
    best: Best | None
    metrics: Mapping[str, float]


class Trainer:
    """One worker of a run. All workers make one and call `run`, with the same config and materials.

    `root` is where this run's checkpoints and best weights lie; `tracker` is given on rank 0 alone.
    """

    def __init__(
        self,
        config: TrainConfig,
        materials: Materials,
        worker: Worker,
        root: str,
        tracker: Tracker | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.config, self.materials, self.worker, self.root = config, materials, worker, root
        self._tracker, self._hooks = tracker, hooks or Hooks()
        self.model = materials.build_model(config.seed)
        shard(self.model, config.compute, worker)
        self.optimiser = Optimiser(self.model, config.optimiser)
        rank, world = worker.rank, worker.world_size
        self._pace = Pace(materials.objective.config, worker)
        self.loader = materials.build_loader(
            config.data, config.seed, "train", rank, world, self._pace.schedule_at
        )
        self._checkpoints = Checkpoints(root, config.checkpoint.keep)
        self._heldout = HeldOut(config, materials, worker) if config.data.holdout else None
        self._gallery = Gallery(config, materials, worker)
        self._meter = Meter(worker, config.data.tokens)
        self._latest: dict[str, float] = {}
        self.step, self._elapsed_s, self._before_s = 0, 0.0, 0.0
        self._begun = time.monotonic()

    def run(self) -> Outcome:
        """Train from the newest checkpoint to the end of the budget."""
        self._restore()
        self._begun = time.monotonic()
        stream = iter(self.loader)
        while not self._done:
            self._train(next(stream))
            self._after_step()
        self._checkpoints.close()
        self.loader.close()
        best = read_best(self.root) if self.worker.leads else None
        return Outcome(self.step, self._elapsed_s, best, self._latest)

    @property
    def _done(self) -> bool:
        return progress(self.step, self._elapsed_s, self.config.budget) >= 1

    @property
    def _schedule(self) -> str:
        """Name of the kappa that the last step was trained under."""
        return self._pace.name_at(max(self.step - 1, 0))

    def _train(self, packs: list[Pack]) -> None:
        """One global step on this worker's packs."""
        normalisers = self._agree(packs)
        torch.manual_seed(self.config.seed * 1_000_003 + self.step * 4099 + self.worker.rank)
        for number, pack in enumerate(packs):
            last_microstep(self.model, number == len(packs) - 1)
            out = self.materials.objective.loss(self.model, pack.to(self.worker.device), normalisers)
            out.total.backward()
            self._meter.add(out.total, out.parts)
            self._pace.add(self.step, pack, out.nll_K)
        lr = learning_rate(
            self.step, progress(self.step, self._elapsed_s, self.config.budget), self.config.optimiser
        )
        self._meter.step(self.optimiser.step(lr, ema_decay(self.step, self.config.ema.decay)))
        self.step += 1
        self._pace.after(self.step)

    def _agree(self, packs: list[Pack]) -> dict[str, float]:
        """Normalisers of the global batch; and the time, which rank 0 tells all."""
        shares = Counter[str]()
        for pack in packs:
            shares.update(self.materials.objective.normalisers(pack))
        names = sorted(shares)
        now = time.monotonic() - self._begun + self._before_s
        *sums, self._elapsed_s = summed([shares[n] for n in names] + [now if self.worker.leads else 0.0])
        return dict(zip(names, sums, strict=True))

    def _after_step(self) -> None:
        watch, done = self.config.watch, self._done
        if done or self.step % watch.log_every == 0:
            self._log()
        if done or self.step % watch.heldout_every == 0:
            self._evaluate()
        if done or self.step % watch.sample_every == 0:
            with averaged(self.model, self.optimiser), gathered(self.model, self.config.compute):
                self._gallery.show(self.model, self._schedule, self.step, self._tracker)
        if done or self.step % self.config.checkpoint.every_steps == 0:
            self._save()

    def _log(self) -> None:
        settings, budget = self.config.optimiser, self.config.budget
        done = progress(self.step, self._elapsed_s, budget)
        metrics = self._meter.read(self.loader.stats)
        if not math.isfinite(metrics["train/loss"]) or not math.isfinite(metrics["train/grad_norm"]):
            mend = "lower optimiser.lr or raise optimiser.warmup_steps"
            raise Diverged(f"step {self.step}", f"the loss is {metrics['train/loss']}", mend)
        metrics["train/lr"] = learning_rate(self.step - 1, done, settings)
        metrics["train/progress"] = done
        metrics |= self._pace.metrics(self.step - 1)
        metrics |= {f"data/epoch/{name}": value for name, value in self.loader.epochs().items()}
        self._tell(metrics)
        if self.worker.leads:
            eta = self._elapsed_s * (1 - done) / done if done else 0.0
            shown = Progress(
                self.step, budget.steps, min(done, 1.0), self._elapsed_s, max(eta, 0.0), self._latest
            )
            self._hooks.progress(shown)

    def _evaluate(self) -> None:
        """Held-out loss of the averaged weights; the best ones are kept."""
        with averaged(self.model, self.optimiser):
            metrics = self._heldout.loss(self.model) if self._heldout else {}
        self._tell(metrics)
        weights = whole_tensors(self.optimiser.average, self.worker.leads)
        if self.worker.leads:
            write_best(self.root, self.step, metrics.get("heldout/loss"), weights, self._schedule)

    def _tell(self, metrics: dict[str, float]) -> None:
        self._latest |= metrics
        if self._tracker:
            self._tracker.metrics(metrics, self.step)

    def _save(self) -> None:
        states: list[Any] = [None] * self.worker.world_size
        dist.all_gather_object(states, self.loader.state_dict())
        state = {"step": self.step, "elapsed_s": self._elapsed_s, "loader": join_states(states)}
        state["schedule"] = self._pace.state()
        state["unsent_metrics"] = self._tracker.unsent() if self._tracker else []
        self._checkpoints.save(self.step, self.optimiser.tensors(), state)
        self._hooks.committed({"step": self.step, "checkpoint": join(self.root, "commits"), **self._latest})

    def _restore(self) -> None:
        restored = self._checkpoints.restore(self.optimiser.tensors())
        if restored is None:
            return
        self.step, self._before_s = restored.step, float(restored.state["elapsed_s"])
        self._elapsed_s = self._before_s
        self.optimiser.set_steps(self.step)
        self.loader.load_state_dict(restored.state["loader"])
        self._pace.load_state(restored.state.get("schedule", {}))
        if self._tracker:
            self._tracker.resend(restored.state.get("unsent_metrics", []))
        log.info("going on after step %d, %.0f s into the budget", self.step, self._before_s)
