"""One worker of a run, whoever started it: Ray Train, or torchrun -m workflows.training.worker CONFIG."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace

import psutil
import torch.distributed as dist

from workflows.config import load
from workflows.process import settle
from workflows.storage import join
from workflows.store_retries import make_patient
from workflows.tracking import FAILURE, MAX_TAG, PARENT_RUN, DatasetRef, RunSpec, Tracker, flat_params
from workflows.training.charts import view_tags
from workflows.training.config import TrainConfig
from workflows.training.identity import CONFIG, CorpusRef, config_path, run_tags
from workflows.training.loop import Hooks, Outcome, Trainer
from workflows.training.materials import Materials, gather
from workflows.training.notes import CHANGED, NOTE, changed_line, experiment_note, run_name, run_note
from workflows.training.parallel import device_type, join_group
from workflows.training.progress import Progress, ProgressWriter, progress_line
from workflows.training.start import agreed
from workflows.training.stopping import signals

log = logging.getLogger(__name__)

FLUSH_S = 60.0
"""Longest wait for progress to be written, at the end of a run."""
LEAVING_S = 5.0
"""Longest wait for tracking where another attempt goes on: a checkpoint carries the rest over."""


def work(
    config: TrainConfig,
    hooks: Hooks | None = None,
    run_key: str | None = None,
    *,
    begun: float | None = None,
    last: bool = True,
) -> Outcome:
    """Train as this process's rank says.

    Args:
        config: the run.
        hooks: who is told what.
        run_key: continues another run than the one of this config.
        begun: when the run was started, in seconds since 1970, if this is its first attempt; None: with this process.
        last: whether this attempt's failure is the run's, which MLflow is told; else another one is expected.
    """
    make_patient()
    worker = join_group(config.compute)
    settle(worker.device.type)
    config = agreed(config, worker)
    materials = gather(config)
    key = run_key or materials.run_key
    root = run_root(config, key)
    tracker = open_tracker(config, materials, key) if worker.leads else None
    writer = ProgressWriter(root) if worker.leads else None
    hooks, begun = hooks or Hooks(), begun or psutil.Process().create_time()
    status = "FAILED" if last else None
    try:
        told = replace(hooks, progress=_both(writer, hooks)) if writer else hooks
        outcome = Trainer(config, materials, worker, root, tracker, told, begun).run()
        status = "KILLED" if outcome.stopped else "FINISHED"
    except BaseException as error:
        if tracker and last:
            tracker.tags({FAILURE: f"{type(error).__name__}: {error}"[:MAX_TAG]})
        raise
    finally:
        if writer:
            writer.close(FLUSH_S)
        if tracker:
            tracker.close(status, config.tracking.patience_s if status else LEAVING_S)
    return outcome


def _both(writer: ProgressWriter, hooks: Hooks) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        writer(progress)
        hooks.progress(progress)

    return tell


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
    tags = run_tags(config, materials, device_type(config.compute)) | {CHANGED: changed_line(config)}
    tags |= {PARENT_RUN: config.tracking.parent_run} if config.tracking.parent_run else {}
    params = flat_params(config.model_dump(mode="json"))
    spec = RunSpec(
        config.tracking.experiment,
        run_name(config, key),
        key,
        params,
        tags,
        first_tags={NOTE: run_note(config, key, tags)},
        experiment_tags=view_tags(),
        first_experiment_tags={NOTE: experiment_note(config.tracking.experiment)},
    )
    tracker = Tracker(uri, spec)
    for manifest in materials.manifests:
        totals = {**asdict(manifest.totals), "manifest_sha256": CorpusRef.of(manifest).manifest_sha256}
        url = join(manifest.base, "manifest.json")
        tracker.dataset(DatasetRef(manifest.name, manifest.version, url, totals))
    for path in ("config.json", config_path(tags[CONFIG])):
        tracker.json(path, config.model_dump(mode="json"))
    return tracker


def main() -> None:
    """Under torchrun: the arguments are a config and overrides like oneflow train's --set.

    SIGTERM and SIGINT to any of the workers end all of them after the step that is going on, with a checkpoint.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config: TrainConfig = load("train", sys.argv[1], sys.argv[2:])
    asked: list[int] = []
    hooks = Hooks(
        progress=lambda progress: print(progress_line(progress), flush=True), stopping=lambda: bool(asked)
    )
    with signals(asked.append):
        outcome = work(config, hooks)
    dist.destroy_process_group()
    if outcome.stopped:
        print(
            f"stopped after step {outcome.step}, which is kept; the same command goes on from it", flush=True
        )
        sys.exit(128 + (asked[0] if asked else signal.SIGTERM))


if __name__ == "__main__":
    main()
