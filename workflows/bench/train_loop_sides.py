"""The sides of the benchmark train-loop: ours under Ray Train, a bare PyTorch loop, and ours on a GPU without Ray.

All train the demo's network with AdamW on one thread a worker. The bare loop has its packs in memory, as many as a
turn has steps; it does what any loop must: loss, backward, clip, step, average.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from oneflow_core.flops import NeededFlops
from oneflow_core.packing import Pack
from workflows.config import load
from workflows.device_rate import device_name, product_rate, sheet_rate
from workflows.training.config import TrainConfig
from workflows.training.loop import Hooks, Progress, Trainer
from workflows.training.materials import Materials, gather
from workflows.training.parallel import Worker, join_group
from workflows.training.schedule import ema_decay, learning_rate, progress

LOG_EVERY = 20
NEVER = 10**6
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Turn:
    """What a side did in one turn."""

    tokens: float
    """Tokens really kept, after corruption and packing."""
    seconds: float
    cpu_seconds: float
    """Of all threads of the process (of rank 0 where there are several)."""


def config_of(
    corpus: str, root: str, workers: int, steps: int, uri: str | None = None, changes: Sequence[str] = ()
) -> TrainConfig:
    """The demo's run with AdamW, without evaluations, samples and checkpoints on the way, and with `changes`."""
    watch = f"{{log_every: {LOG_EVERY}, heldout_every: {NEVER}, sample_every: {NEVER}, prompts: []}}"
    own = [f"data.corpora=[{{url: {corpus}}}]", f"watch={watch}", f"budget={{steps: {steps}}}"]
    own += ["optimiser.kind=adamw", f"checkpoint={{url: {root}, every_steps: {NEVER}}}", "data.holdout=0"]
    own += [
        f"compute.workers={workers}",
        "compute.device=cpu",
        "compute.stall_timeout_s=3600",
        f"name=bench-{workers}",
    ]
    own += [f"tracking={{experiment: bench, uri: '{uri}'}}"] if uri else []
    return load("train", "shapes-nano", [*own, *changes])


class Taker:
    """In rank 0 of a run: waits at every `steps` steps until the other side of `place` asks for the next turn."""

    def __init__(self, place: Path, steps: int) -> None:
        self._place, self._steps, self._turn = place, steps, 0
        self._tokens = 0.0
        self._begun = time.perf_counter(), time.process_time()

    def __call__(self, at: Progress) -> None:
        """A hook for progress, told every LOG_EVERY steps."""
        told = at.metrics
        self._tokens += told["speed/tokens_per_s"] * told["speed/step_s"] * LOG_EVERY
        if at.step % self._steps:
            return
        seconds, cpu = (now - then for now, then in zip(_clocks(), self._begun, strict=True))
        done = self._place / f"done-{self._turn}"
        done.with_suffix(".new").write_text(json.dumps([self._tokens, seconds, cpu]))
        done.with_suffix(".new").rename(done)
        self._turn += 1
        while at.done < 1 and not (self._place / f"go-{self._turn}").exists():
            time.sleep(POLL_S)
        self._tokens, self._begun = 0.0, _clocks()


def take(place: Path, turn: int, alive: Callable[[], None] = lambda: None) -> Turn:
    """Let the run at `place` take its turn and wait for it; turn 0 begins by itself. `alive` raises when it ended."""
    (place / f"go-{turn}").touch()
    while not (place / f"done-{turn}").exists():
        alive()
        time.sleep(POLL_S)
    return Turn(*json.loads((place / f"done-{turn}").read_text()))


def under_ray(given: dict[str, Any]) -> None:
    """A worker of ours."""
    from workflows.training.worker import work

    place = Path(given["place"])
    work(TrainConfig.model_validate(given["config"]), Hooks(Taker(place, given["steps"])), given["key"])


def ours(given: dict[str, Any]) -> None:
    """A run of ours, from start to end, on the Ray that RAY_ADDRESS names."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=True)
    TorchTrainer(
        under_ray,
        train_loop_config=given,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=given["config"]["compute"]["workers"]),
        run_config=RunConfig(name=given["key"], storage_path=str(Path(given["place"]) / "ray")),
    ).fit()


def bare(corpus: str, steps: int, changes: Sequence[str] = ()) -> Callable[..., dict[str, float]]:
    """The bare loop; answers with a turn, and with FLOPs a token and the rate of a large product."""
    torch.set_num_threads(1)
    config = config_of(corpus, "none", 1, NEVER, changes=changes)
    materials = gather(config)
    batches = batches_of(config, materials, steps)
    model = materials.build_model(config.seed)
    tokens = sum(pack.tokens for packs in batches for pack in packs)
    needed = NeededFlops.of(model)
    flops = sum(needed.of_pack(pack) for packs in batches for pack in packs) / tokens
    train = bare_loop(config, materials, model)

    def answer(asked: str) -> dict[str, float]:
        if asked == "rates":
            return {"flops": flops, "product": product_rate(1024, torch.float32, "cpu")}
        wall, cpu = _clocks()
        train(batches)
        seconds, spent = (now - then for now, then in zip(_clocks(), (wall, cpu), strict=True))
        return {"tokens": float(tokens), "seconds": seconds, "cpu_seconds": spent}

    return answer


def batches_of(config: TrainConfig, materials: Materials, steps: int) -> list[list[Pack]]:
    """The packs of a run's first steps, on one worker."""
    loader = materials.build_loader(config.data, config.seed, "train", 0, 1)
    stream = iter(loader)
    batches = [next(stream) for _ in range(steps)]
    loader.close()
    return batches


def bare_loop(config: TrainConfig, materials: Materials, model: nn.Module) -> Callable[[Iterable], None]:
    """What trains `model` on steps of packs, going on where it stopped."""
    settings, objective, step = config.optimiser, materials.objective, 0
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    kept = [p for p in model.parameters() if p.ndim < 2 or p in tables]
    decayed = [p for p in model.parameters() if p.ndim > 1 and p not in tables]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, settings.lr, (settings.beta1, settings.beta2), settings.eps, fused=True)
    parameters = [*decayed, *kept]
    average = [p.detach().clone() for p in parameters]

    def train(batches: Iterable[list[Pack]]) -> None:
        nonlocal step
        for packs in batches:
            shares = [objective.normalisers(pack) for pack in packs]
            sums = {name: sum(share[name] for share in shares) for name in shares[0]}
            for pack in packs:
                objective.loss(model, pack, sums).total.backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip, foreach=True)
            for group in adam.param_groups:
                group["lr"] = learning_rate(step, progress(step, 0.0, config.budget), settings)
            adam.step()
            adam.zero_grad()
            weight = 1 - ema_decay(step, config.ema.decay)
            torch._foreach_lerp_(average, [p.detach() for p in parameters], weight)
            step += 1

    return train


class TimedTrainer(Trainer):
    """Notes when each step ended, and what it needed; nothing is evaluated or stored, not even at the end."""

    ends: list[float]
    tokens: list[int]
    flops: list[float]

    def _train(self, packs: list[Pack]) -> None:
        self.tokens.append(sum(pack.tokens for pack in packs))
        self.flops.append(sum(NeededFlops.of(self.model).of_pack(pack) for pack in packs))
        super()._train(packs)
        self.ends.append(time.perf_counter())

    def _after_step(self) -> None:
        if self._done or self.step % self.config.watch.log_every == 0:
            self._log()


def alone(config: TrainConfig, root: str, skipped: int) -> dict[str, Any]:
    """Our loop on this process alone, without Ray and tracking: rates over the steps after the first `skipped`."""
    worker: Worker = join_group(config.compute)
    trainer = TimedTrainer(config, gather(config), worker, root)
    trainer.ends, trainer.tokens, trainer.flops = [], [], []
    outcome = trainer.run()
    seconds = _steps(trainer, skipped)
    flops, middle = trainer.flops[skipped:], median(seconds)
    return {
        "rates": [flop / s for flop, s in zip(flops, seconds, strict=True)],
        "tokens_per_s": sum(trainer.tokens[skipped:]) / sum(seconds),
        "step_s": middle,
        "jitter": sorted(seconds)[int(0.95 * (len(seconds) - 1))] / middle - 1,
        "data_wait": outcome.metrics["speed/data_wait"],
        **_device(sum(flops) / sum(seconds), worker.device.type),
    }


def _device(rate: float, device: str) -> dict[str, Any]:
    """MFU by the data sheet, where it is known. Peaks of memory are what bench plan measures: meters reset them."""
    name = device_name(device)
    sheet = sheet_rate(name)
    return {"device": name, "mfu": rate / sheet if sheet else None, "sheet": sheet}


def _steps(trainer: TimedTrainer, skipped: int) -> list[float]:
    ends = trainer.ends[skipped - 1 :]
    return [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    ours(json.loads(sys.argv[1]))
