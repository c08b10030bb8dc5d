"""The inner loop of a worker: plain torch.distributed, under Ray and under torchrun alike.

Every step: read packs, agree on normalisers and time, pass forward and backward, step, average. What a step reads
and how it is corrupted is a function of the seed and of what was consumed, so a checkpoint needs no generator's
state and a resumed run goes on as if nothing had happened.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from oneflow_core.data.state import join_states
from oneflow_core.objectives.protocol import LossOutput
from oneflow_core.packing import Pack
from workflows.storage import join
from workflows.tracking import Tracker
from workflows.training.attempts import Attempt
from workflows.training.average import averaged, gathered
from workflows.training.best import Best, read_best, write_best
from workflows.training.checkpoint import Checkpoints
from workflows.training.config import TrainConfig
from workflows.training.detail import Detail
from workflows.training.faults import record_fault
from workflows.training.guard import Guard
from workflows.training.heldout import HeldOut
from workflows.training.materials import Materials
from workflows.training.meter import Meter
from workflows.training.optimiser import Optimiser
from workflows.training.pace import Pace
from workflows.training.parallel import Worker, last_microstep, shard, summed
from workflows.training.profiler import Profiler
from workflows.training.progress import Progress
from workflows.training.samples import Gallery
from workflows.training.schedule import ema_decay, learning_rate, progress
from workflows.training.start import load_start
from workflows.training.watchdog import Watchdog

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between looks whether a node is about to go: in all ranks at the same step, as it is a barrier."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was logged at a step: the run's metrics, the same on all ranks, and those of this worker alone."""

    step: int
    metrics: Mapping[str, float]
    local: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who is told what; all optional."""

    progress: Callable[[Progress], None] = field(default=lambda _: None)
    """Rank 0, at every logged step."""
    committed: Callable[[Mapping[str, Any]], None] = field(default=lambda _: None)
    """All ranks, at every checkpoint, with a pointer to it."""
    stopping: Callable[[], bool] = field(default=lambda: False)
    """Each rank, at every step: whether the run is to end after it, with a checkpoint. One that says so is enough."""
    leaving: Callable[[], bool] = field(default=lambda: False)
    """All ranks, every `LOOK_S` seconds, with one answer: whether a checkpoint is wanted, as a node will go."""
    logged: Callable[[Reading], None] = field(default=lambda _: None)
    """All ranks, at every logged step."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    step: int
    elapsed_s: float
    best: Best | None
    metrics: Mapping[str, float]
    stopped: bool = False
    """It was asked to end before its budget was used up."""


class Trainer:
    """One worker of a run. All workers make one and call `run`, with the same config and materials.

    `root` is where this run's checkpoints and best weights lie; `tracker` is given on rank 0 alone; `begun` is when
    the run was started, in seconds since 1970, if this is its first attempt.
    """

    def __init__(
        self,
        config: TrainConfig,
        materials: Materials,
        worker: Worker,
        root: str,
        tracker: Tracker | None = None,
        hooks: Hooks | None = None,
        begun: float | None = None,
    ) -> None:
        self.config, self.materials, self.worker, self.root = config, materials, worker, root
        self._tracker, self._hooks = tracker, hooks or Hooks()
        self._attempt = Attempt(root, worker, tracker, begun)
        self.model = materials.build_model(config.seed)
        shard(self.model, config.compute, worker)
        self.optimiser = Optimiser(self.model, config.optimiser)
        rank, world = worker.data_rank, worker.data_size
        self._pace = Pace(materials.objective.config, worker)
        self.loader = materials.build_loader(
            config.data, config.seed, "train", rank, world, self._pace.schedule_at
        )
        kept = config.checkpoint
        self._checkpoints = Checkpoints(
            root, kept.keep, keep_every=kept.keep_every, max_failed=kept.max_failed
        )
        self._heldout = HeldOut(config, materials, worker) if config.data.holdout else None
        self._gallery = Gallery(config, materials, worker)
        self._meter = Meter(worker, config.data.tokens, self._detail())
        self._guard = Guard(config.guard)
        self._watchdog = Watchdog(worker, root, config.compute.stall_timeout_s, tracker)
        self._profiler = Profiler(config.watch.profile, worker, root, tracker)
        self._latest: dict[str, float] = {}
        self.step, self._elapsed_s, self._before_s, self._saved_s = 0, 0.0, 0.0, 0.0
        self._begun = time.monotonic()
        self._stopping, self._looked_s = False, 0.0

    def run(self) -> Outcome:
        """Train from the newest checkpoint to the end of the budget, or until it is asked to stop."""
        with self._watchdog:
            self._restore()
            self._begun = time.monotonic()
            stream = iter(self.loader)
            while not self._done and not self._stopping:
                self._profiler.before(self.step)
                self._attempt.enter("data_wait")
                with self._watchdog.phase("data", self.step):
                    packs = next(stream)
                self._attempt.enter("steps")
                self._train(packs)
                self._after_step()
            self._attempt.enter("checkpoint")
            self._profiler.close()
            self._checkpoints.close()
            self.loader.close()
        self._tell_progress()
        best = read_best(self.root) if self.worker.leads else None
        return Outcome(self.step, self._elapsed_s, best, self._latest, not self._done)

    def _detail(self) -> Detail | None:
        if self.config.watch.detail == "basic":
            return None
        return Detail(self.model, self.materials.objective, self.optimiser, self.worker, self.config.compute)

    @property
    def _done(self) -> bool:
        return progress(self.step, self._elapsed_s, self.config.budget) >= 1

    @property
    def _save_is_due(self) -> bool:
        """By steps, or by the clock of rank 0, which all share."""
        settings, age_s = self.config.checkpoint, self._elapsed_s - self._saved_s
        late = settings.every_minutes is not None and age_s >= 60 * settings.every_minutes
        return late or self.step % settings.every_steps == 0

    @property
    def _schedule(self) -> str:
        """Name of the kappa that the last step was trained under."""
        return self._pace.name_at(max(self.step - 1, 0))

    def _train(self, packs: list[Pack]) -> None:
        """One global step on this worker's packs."""
        phase = self._watchdog.phase
        with phase("agree", self.step):
            normalisers = self._agree(packs)
        torch.manual_seed(self.config.seed * 1_000_003 + self.step * 4099 + self.worker.data_rank)
        passed: list[tuple[Pack, LossOutput]] = []
        for number, pack in enumerate(packs):
            last_microstep(self.model, number == len(packs) - 1)
            with phase("forward", self.step):
                out = self.materials.objective.loss(self.model, pack.to(self.worker.device), normalisers)
            with phase("backward", self.step):
                out.total.backward()
            passed.append((pack, out))
        with phase("optimiser", self.step):
            self._step(passed, normalisers)
        self.step += 1
        self._pace.after(self.step)

    def _step(self, passed: list[tuple[Pack, LossOutput]], normalisers: Mapping[str, float]) -> None:
        """Change the weights, unless the guard refuses: then nothing of the step stays."""
        loss = torch.stack([out.total.detach() for _, out in passed]).sum()
        lr = learning_rate(
            self.step, progress(self.step, self._elapsed_s, self.config.budget), self.config.optimiser
        )
        self._checkpoints.staged()
        norm = self.optimiser.step(
            lr,
            ema_decay(self.step, self.config.ema.decay),
            lambda norm: self._guard.accepts(self.step, loss, norm),
        )
        if self._guard.fault is None:
            for pack, out in passed:
                self._meter.add(pack, out)
                self._pace.add(self.step, pack, out.nll_K)
            return self._meter.step(norm)
        self._meter.skip()
        if self._guard.keeps:
            record_fault(self.root, self._guard.fault, self.worker, passed, normalisers, self._tracker)
        if self._guard.exhausted:
            self._roll_back()

    def _roll_back(self) -> None:
        """The weights of the newest checkpoint from before the bad steps; what was read since is not read again."""
        self._checkpoints.wait()
        tensors, first = self.optimiser.tensors(), self._guard.first_bad
        restored = self._checkpoints.restore(tensors, first) or self._checkpoints.restore(tensors, first + 1)
        if restored is None:
            raise self._guard.diverged("there is no checkpoint from before")
        self._guard.rolled_back(restored.step, restored.state)
        self._attempt.roll_back(restored.state.get("goodput"))
        self.optimiser.set_steps(self._guard.applied)

    def _agree(self, packs: list[Pack]) -> dict[str, float]:
        """Normalisers of the global batch; the time, which rank 0 tells all; and whether one is asked to stop."""
        shares = Counter[str]()
        for pack in packs:
            shares.update(self.materials.objective.normalisers(pack))
        names = sorted(shares)
        now = time.monotonic() - self._begun + self._before_s
        told = [now if self.worker.leads else 0.0, float(self._hooks.stopping())]
        *sums, self._elapsed_s, stopping = summed([shares[n] for n in names] + told)
        self._stopping = stopping > 0
        return dict(zip(names, sums, strict=True))

    def _after_step(self) -> None:
        watch, done, phase = self.config.watch, self._done, self._watchdog.phase
        if done or self.step % watch.log_every == 0:
            self._log()
        if done or self.step % watch.heldout_every == 0:
            self._attempt.enter("evaluate")
            with phase("evaluate", self.step):
                self._evaluate()
        if done or self.step % watch.sample_every == 0:
            self._attempt.enter("evaluate")
            with (
                phase("sample", self.step),
                averaged(self.model, self.optimiser),
                gathered(self.model, self.config.compute),
            ):
                self._tell(self._gallery.show(self.model, self._schedule, self.step, self._tracker))
        leaving = self._leaving() or self._stopping
        # Within a row of bad steps the newest checkpoint stays one from before it.
        if done or leaving or (self._save_is_due and not self._guard.streak):
            self._attempt.enter("checkpoint")
            with phase("checkpoint", self.step):
                self._save()

    def _leaving(self) -> bool:
        """Whether a node will go soon; asked once in a while, by all ranks after the same step."""
        if self._elapsed_s - self._looked_s < LOOK_S:
            return False
        self._looked_s = self._elapsed_s
        return self._hooks.leaving()

    def _log(self) -> None:
        settings, done = self.config.optimiser, progress(self.step, self._elapsed_s, self.config.budget)
        metrics = self._meter.read(self.loader.stats)
        metrics |= self._guard.metrics()
        metrics["train/lr"] = learning_rate(self.step - 1, done, settings)
        metrics["train/progress"] = done
        metrics |= self._pace.metrics(self.step - 1)
        metrics |= self._checkpoints.metrics()
        metrics |= {f"data/epoch/{name}": value for name, value in self.loader.epochs().items()}
        if self.worker.leads:
            metrics |= self._attempt.goodput().metrics()
        self._tell(metrics)
        self._hooks.logged(Reading(self.step, self._latest, self._meter.local))
        self._tell_progress()

    def _tell_progress(self) -> None:
        """Rank 0's hook is told where the run stands."""
        if not self.worker.leads:
            return
        done = progress(self.step, self._elapsed_s, self.config.budget)
        eta = self._elapsed_s * (1 - done) / done if done else 0.0
        steps, elapsed, goodput = self.config.budget.steps, self._elapsed_s, asdict(self._attempt.goodput())
        told = Progress(self.step, steps, min(done, 1.0), elapsed, max(eta, 0.0), dict(self._latest), goodput)
        self._hooks.progress(told)

    def _evaluate(self) -> None:
        """Held-out loss of the averaged weights; the best ones are kept."""
        with averaged(self.model, self.optimiser):
            metrics = self._heldout.loss(self.model) if self._heldout else {}
        self._tell(metrics)
        if self._heldout and self._tracker:
            self._heldout.show(self.step, self._tracker)
        loss = metrics.get("heldout/loss")
        write_best(self.root, self.step, loss, self.optimiser.average, self._schedule)

    def _tell(self, metrics: dict[str, float]) -> None:
        self._latest |= metrics
        if self._tracker:
            self._tracker.metrics(metrics, self.step)

    def _save(self) -> None:
        states: list[Any] = [None] * self.worker.world_size
        dist.all_gather_object(states, self.loader.state_dict())
        state = {"step": self.step, "elapsed_s": self._elapsed_s, "loader": join_states(states)}
        state["schedule"] = self._pace.state()
        state["goodput"] = asdict(self._attempt.goodput())
        state["guard"] = self._guard.state()
        state["unsent_metrics"] = self._tracker.unsent() if self._tracker else []
        self._checkpoints.save(self.step, self.optimiser.tensors(), state)
        self._saved_s = self._elapsed_s
        self._hooks.committed({"step": self.step, "checkpoint": join(self.root, "commits"), **self._latest})

    def _restore(self) -> None:
        restored = self._checkpoints.restore(self.optimiser.tensors())
        if restored is None:
            if self.materials.start:
                load_start(self.model, self.materials.start)
                self.optimiser.begin_average()
            self._attempt.go_on(0, None)
            return
        self.step, self._before_s = restored.step, float(restored.state["elapsed_s"])
        self._elapsed_s = self._saved_s = self._before_s
        self._guard.load_state(self.step, restored.state)
        self.optimiser.set_steps(self._guard.applied)
        self.loader.load_state_dict(restored.state["loader"])
        self._pace.load_state(restored.state.get("schedule", {}))
        self._attempt.go_on(self.step, restored.state.get("goodput"))
        if self._tracker:
            self._tracker.resend(restored.state.get("unsent_metrics", []))
        log.info("going on after step %d, %.0f s into the budget", self.step, self._before_s)
