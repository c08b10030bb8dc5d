"""The loop and its checkpoints on two real processes: exact resume after SIGKILL, other worker counts, damage."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from tests.workflows.training.corpus import tiny_config, write_corpus
from tests.workflows.training.processes import forking
from workflows.errors import OneFlowError
from workflows.training import worker
from workflows.training.best import load_best
from workflows.training.commit import commit_name
from workflows.training.config import TrainConfig
from workflows.training.loop import Progress
from workflows.training.train import run


def _work(
    config: TrainConfig, rank: int, workers: int, port: int, output: Path, environment: dict[str, str]
) -> None:
    """A worker process: what torchrun would start, with its output in a file."""
    # The server that forks may be older than what the stack has set since.
    os.environ |= environment
    written = output.with_suffix(".json")
    written.write_text(config.model_dump_json())
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(workers)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with output.open("w", buffering=1) as stream:
        sys.stdout = sys.stderr = stream
        logging.basicConfig(level=logging.INFO, stream=stream, force=True)
        try:
            worker.progress_line = _line
            sys.argv = ["worker", str(written)]
            worker.main()
        except BaseException:
            traceback.print_exc(file=stream)
            raise


def _line(progress: Progress) -> str:
    return f"loss {progress.step} {progress.metrics['train/loss']!r}"


def _await(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 500
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.001)


def _committed(config: TrainConfig) -> bool:
    return bool(list(Path(config.checkpoint.url).glob("*/commits/*.json")))


@dataclass
class Run:
    """The processes of a launched run."""

    processes: list[BaseProcess]
    outputs: list[Path]

    def finish(self) -> str:
        for process in self.processes:
            process.join(500)
        said = "\n".join(path.read_text() for path in self.outputs if path.exists())
        assert all(process.exitcode == 0 for process in self.processes), said
        return said

    def stop_after_a_commit(self, config: TrainConfig) -> str:
        """SIGTERM to the last worker alone once a checkpoint is committed; what all said when they ended by it."""
        _await(lambda: _committed(config))
        self.processes[-1].terminate()
        for process in self.processes:
            process.join(500)
        said = "\n".join(path.read_text() for path in self.outputs)
        assert [process.exitcode for process in self.processes] == [128 + signal.SIGTERM] * 2, said
        return said

    def kill_after_a_commit(self, config: TrainConfig) -> None:
        """SIGKILL to the last worker once a checkpoint is committed, then to the rest."""
        self.kill_when(lambda: _committed(config))
        steps = sorted(path.name for path in (run_root(config) / "commits").iterdir())
        assert steps and steps[-1] < commit_name(config.budget.steps)

    def kill_when(self, ready: Callable[[], bool], after_s: float = 0.0) -> None:
        """SIGKILL to the last worker so many seconds after `ready` is true, then to the rest."""
        _await(ready)
        time.sleep(after_s)
        for process in reversed(self.processes):
            process.kill()
            process.join()


def launch(config: TrainConfig, directory: Path, workers: int) -> Run:
    """Start the workers of a run; imports are done once for all launches."""
    context = forking()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    number = len(list(directory.glob("output-*")))
    outputs = [directory / f"output-{number + rank}" for rank in range(workers)]
    settings = config.model_copy(update={"compute": config.compute.model_copy(update={"workers": workers})})
    processes: list[BaseProcess] = []
    for rank, output in enumerate(outputs):
        processes.append(
            context.Process(target=_work, args=(settings, rank, workers, port, output, dict(os.environ)))
        )
        processes[-1].start()
    return Run(processes, outputs)


def run_root(config: TrainConfig) -> Path:
    [root] = [path for path in Path(config.checkpoint.url).iterdir() if path.is_dir()]
    return root


def best_weights(config: TrainConfig) -> dict[str, list]:
    _, held = load_best(str(run_root(config)))
    return {name: held.read(name).flatten().tolist() for name in held.kinds()}


def final_tensors(config: TrainConfig) -> dict[str, object]:
    """Everything in the newest checkpoint, by chunk."""
    root = run_root(config)
    commit = json.loads(max((root / "commits").iterdir()).read_text())
    return {
        key: tensor.tolist()
        for name, _, _ in commit["files"]
        for key, tensor in load_file(root / commit["directory"] / name).items()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("corpus") / "tiny"
    write_corpus(base)
    return base


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, str]:
    directory = tmp_path_factory.mktemp("undisturbed")
    config = tiny_config(corpus, directory / "checkpoints")
    return config, launch(config, directory, 2).finish()


def test_a_killed_worker_costs_nothing_but_time(
    corpus: Path, tmp_path: Path, undisturbed: tuple[TrainConfig, str]
) -> None:
    config = tiny_config(corpus, tmp_path / "checkpoints")
    launch(config, tmp_path, 2).kill_after_a_commit(config)

    output = launch(config, tmp_path, 2).finish()
    assert "going on after step" in output
    assert final_tensors(config) == final_tensors(undisturbed[0])
    assert best_weights(config) == best_weights(undisturbed[0])


def test_sigterm_to_one_worker_ends_all_after_a_step_that_is_kept(corpus: Path, tmp_path: Path) -> None:
    """The step is none at which a checkpoint was due, and what follows is what would have followed."""
    changes: dict[str, object] = {"budget__steps": 40, "checkpoint__every_steps": 5, "checkpoint__keep": 9}
    changes["watch__heldout_every"] = 20
    undisturbed = tiny_config(corpus, tmp_path / "undisturbed", **changes)
    launch(undisturbed, tmp_path, 2).finish()
    config = tiny_config(corpus, tmp_path / "stopped", **changes)
    said = launch(config, tmp_path, 2).stop_after_a_commit(config)

    [step] = {int(number) for number in re.findall(r"stopped after step (\d+), which is kept", said)}
    kept = sorted(path.name for path in (run_root(config) / "commits").iterdir())
    assert kept[-1] == commit_name(step) and 5 < step < 40

    assert f"going on after step {step}" in launch(config, tmp_path, 2).finish()
    assert final_tensors(config) == final_tensors(undisturbed)
    attempts = json.loads((run_root(config) / "attempts.json").read_text())
    assert [(a["attempt"], a["start_step"], a["world_size"]) for a in attempts] == [(1, 0, 2), (2, step, 2)]
    goodput = json.loads((run_root(config) / "progress.json").read_text())["goodput"]
    spent = sum(value for name, value in goodput.items() if name not in ("begun", "at"))
    assert spent == pytest.approx(goodput["at"] - goodput["begun"], abs=1e-3)
    # What was committed when it stopped was not done again; between the attempts nothing was done.
    assert goodput["lost"] < goodput["steps"] and goodput["restart"] > 0


def test_metrics_that_tracking_did_not_take_in_time_are_delivered_by_the_same_command(
    corpus: Path, tmp_path: Path
) -> None:
    tracking = {"experiment": "late", "patience_s": 0.5}
    away = tiny_config(
        corpus,
        tmp_path / "c",
        tracking={**tracking, "uri": "http://127.0.0.1:9"},
        registry={"name": None},
    )
    launch(away, tmp_path, 1).finish()
    with pytest.raises(OneFlowError, match="MLflow at .*run the same command again to register"):
        run(away, say=lambda line: None)

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    client.create_experiment("late", artifact_location=str(tmp_path / "artifacts"))
    back = away.model_copy(
        update={"tracking": away.tracking.model_copy(update={"uri": uri, "patience_s": 60})}
    )
    for _ in range(2):
        report = run(back, say=lambda line: None)
        assert report.run_id is not None
        told = client.get_run(report.run_id)
        assert (told.info.status, told.data.tags["oneflow.attempt"]) == ("FINISHED", "1")
        for metric, every in {"train/loss": 2, "goodput/share": 2, "heldout/loss": 4}.items():
            steps = [m.step for m in client.get_metric_history(report.run_id, metric)]
            assert steps == list(range(every, 13, every))


def test_another_number_of_workers_goes_on_with_the_same_run(
    corpus: Path, tmp_path: Path, undisturbed: tuple[TrainConfig, str]
) -> None:
    config = tiny_config(corpus, tmp_path / "checkpoints")
    launch(config, tmp_path, 2).kill_after_a_commit(config)

    launch(config, tmp_path, 1).finish()
    ours, theirs = best_weights(config), best_weights(undisturbed[0])
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values == pytest.approx(theirs[name], abs=2e-4), name


def test_a_damaged_newest_checkpoint_is_passed_over(
    corpus: Path, tmp_path: Path, undisturbed: tuple[TrainConfig, str]
) -> None:
    config = tiny_config(corpus, tmp_path / "checkpoints")
    launch(config, tmp_path, 2).finish()
    root = run_root(config)
    [newest] = root.glob("step-000000012-*/part-00001-*.safetensors")
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(bytes(data))
    (root / "step-000000013-dead").mkdir()

    output = launch(config, tmp_path, 2).finish()
    assert "checkpoint of step 12 is passed over" in output
    assert "going on after step 8" in output
    assert final_tensors(config) == final_tensors(undisturbed[0])
    assert len(list((root / "commits").iterdir())) == 2
