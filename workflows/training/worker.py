"""One worker of a run, whoever started it: Ray Train, or torchrun -m workflows.training.worker CONFIG."""

import logging
import os
import sys
from collections.abc import Mapping

import torch.distributed as dist

from workflows.config import digest, load
from workflows.revision import git_commit
from workflows.storage import join
from workflows.tracking import COMMIT, DatasetRef, RunSpec, Tracker, flat_params
from workflows.training.config import TrainConfig
from workflows.training.loop import Hooks, Outcome, Progress, Trainer
from workflows.training.materials import Materials, gather
from workflows.training.parallel import join_group
from workflows.training.process import settle

log = logging.getLogger(__name__)

FLUSH_S = 60.0


def work(config: TrainConfig, hooks: Hooks | None = None, run_key: str | None = None) -> Outcome:
    """Train as this process's rank says. `run_key` continues another run than the one of this config."""
    worker = join_group(config.compute)
    settle(worker.device.type)
    materials = gather(config)
    key = run_key or materials.run_key
    tracker = open_tracker(config, materials, key) if worker.leads else None
    try:
        outcome = Trainer(config, materials, worker, run_root(config, key), tracker, hooks).run()
    except BaseException:
        if tracker:
            tracker.close("FAILED", FLUSH_S)
        raise
    if tracker:
        tracker.close("FINISHED", FLUSH_S)
    return outcome


def run_root(config: TrainConfig, key: str) -> str:
    """Where the run of `key` keeps its checkpoints and best weights."""
    return join(config.checkpoint.url, key)


def tracking_uri(config: TrainConfig) -> str | None:
    """The tracking server, from the config or MLFLOW_TRACKING_URI."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")


def open_tracker(config: TrainConfig, materials: Materials, key: str) -> Tracker | None:
    """The run in MLflow, with its params, tags and corpora; None where no server is named."""
    uri = tracking_uri(config)
    if not uri:
        return None
    tags: Mapping[str, str] = {
        COMMIT: git_commit(),
        "oneflow.config_digest": digest(config),
        "oneflow.corpus_version": materials.corpus_version,
        "oneflow.parameters": str(sum(p.numel() for p in materials.build_model(0).parameters())),
    }
    params = flat_params(config.model_dump(mode="json"))
    tracker = Tracker(uri, RunSpec(config.tracking.experiment, config.name, key, params, tags))
    for manifest in materials.manifests:
        totals = {"samples": manifest.totals.samples, "images": manifest.totals.images}
        url = join(manifest.base, "manifest.json")
        tracker.dataset(DatasetRef(manifest.name, manifest.version, url, totals))
    tracker.json("config.json", config.model_dump(mode="json"))
    return tracker


def progress_line(progress: Progress) -> str:
    """One line for a terminal."""
    shown = {name.removeprefix("train/"): v for name, v in progress.metrics.items() if name in SHOWN}
    parts = " ".join(f"{SHORT.get(name, name)} {value:.3f}" for name, value in shown.items())
    speed = progress.metrics.get("speed/tokens_per_s", 0.0)
    held = progress.metrics.get("heldout/loss")
    tail = f" heldout {held:.3f}" if held is not None else ""
    clock = f"{progress.elapsed_s:.0f} s, {progress.eta_s:.0f} s left"
    return f"step {progress.step} {progress.done:4.0%} {parts}{tail} {speed:,.0f} tokens/s ({clock})"


SHOWN = ("train/loss", "train/text/ce", "train/text/rate_regret", "train/text/zero", "train/image/mse")
SHORT = {"text/ce": "ce", "text/rate_regret": "rate", "text/zero": "zero", "image/mse": "image"}


def main() -> None:
    """Under torchrun: the arguments are a config and overrides like oneflow train's --set."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config: TrainConfig = load("train", sys.argv[1], sys.argv[2:])
    work(config, Hooks(progress=lambda progress: print(progress_line(progress), flush=True)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
