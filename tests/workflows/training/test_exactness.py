"""A run is a function of its config: whenever it is killed, and on however many workers, it comes to the same."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.workflows.training.corpus import tiny_config, write_corpus
from tests.workflows.training.test_distributed import best_weights, final_tensors, launch
from workflows.training.config import TrainConfig
from workflows.training.loop import Hooks, Progress, Trainer
from workflows.training.materials import gather
from workflows.training.parallel import Worker, local
from workflows.training.retention import committed_steps

STATELESS = {
    "config", "materials", "worker", "root", "_tracker", "_hooks", "_checkpoints", "_heldout", "_gallery", "_meter",
    "_watchdog", "_profiler", "_attempt", "_latest", "_elapsed_s", "_before_s", "_saved_s", "_looked_s", "_begun",
    "loader",
}  # fmt: skip
"""What of a Trainer is made anew on a resume, or is time, or (the loader) is asked for its state."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("corpus") / "tiny"
    write_corpus(base)
    return base


def root_of(config: TrainConfig) -> Path | None:
    return next((path for path in Path(config.checkpoint.url).glob("*") if path.is_dir()), None)


def committed(config: TrainConfig) -> int:
    """The newest step that is committed."""
    root = root_of(config)
    return max([0, *(int(path.stem[5:]) for path in root.glob("commits/step-*.json"))]) if root else 0


def saving(config: TrainConfig, after: int) -> bool:
    """Whether a save behind step `after` is on its way: it has files and no commit."""
    root = root_of(config)
    if root is None:
        return False
    steps = {int(path.name.split("-")[1]) for path in root.glob("step-*")}
    return any(step > after and step > committed(config) for step in steps)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(
    corpus: Path, tmp_path: Path, workers: int
) -> None:
    changes = {"budget__steps": 36, "checkpoint__every_steps": 3, "watch__heldout_every": 9}
    undisturbed = tiny_config(corpus, tmp_path / "undisturbed", **changes)
    launch(undisturbed, tmp_path, workers).finish()

    config, rng = tiny_config(corpus, tmp_path / "killed", **changes), random.Random(workers)
    for during_a_save in (False, True, False, True):
        begin = committed(config)
        target = begin + rng.randrange(0, 9)
        run = launch(config, tmp_path, workers)
        if during_a_save:
            run.kill_when(lambda target=target: saving(config, target))  # type: ignore[misc]
        else:
            run.kill_when(lambda target=target: committed(config) > target, rng.uniform(0, 0.1))  # type: ignore[misc]
    assert committed(config) < 36
    output = launch(config, tmp_path, workers).finish()
    assert "going on after step" in output and "passed over" not in output
    assert final_tensors(config) == final_tensors(undisturbed)
    assert best_weights(config) == best_weights(undisturbed)
    root = root_of(config)
    assert root and len(list(root.glob("step-*"))) == len(list(root.glob("commits/*"))) == 2


def losses(output: str) -> list[float]:
    """By step; the last one is told again when the run ends."""
    told = dict(re.findall(r"^loss (\d+) (\S+)$", output, re.MULTILINE))
    return [float(value) for value in told.values()]


def test_on_one_two_and_four_workers_the_losses_agree(corpus: Path, tmp_path: Path) -> None:
    found = []
    for workers in (1, 2, 4):
        changes = {"budget__steps": 36, "data__lanes": 4, "watch__log_every": 1, "data__holdout": 0.0}
        fewer = {"checkpoint__every_steps": 36, "compute__shard_min_mb": 16}
        config = tiny_config(corpus, tmp_path / str(workers), **changes, **fewer)
        found.append(losses(launch(config, tmp_path, workers).finish()))
    assert [len(run) for run in found] == [36] * 3
    assert found[0][-1] < 0.9 * found[0][0]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-5)


def everything(trainer: Trainer) -> dict[str, Any]:
    """All numbers and tensors that a Trainer holds, by path, whatever they are for."""
    found: dict[str, Any] = {"loader": json.dumps(trainer.loader.state_dict(), sort_keys=True)}
    for name, value in vars(trainer).items():
        if name not in STATELESS:
            _collect(value, name, found, set())
    return found


def _collect(value: Any, path: str, found: dict[str, Any], seen: set[int]) -> None:
    if isinstance(value, torch.Tensor):
        found[path] = local(value.detach()).clone()
    elif isinstance(value, np.ndarray):
        found[path] = torch.from_numpy(value.copy())
    elif isinstance(value, bool | int | float | str | None):
        found[path] = value
    elif id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            held: Any = value.state_dict()
        elif isinstance(value, torch.optim.Optimizer):
            held = value.state_dict()
        elif isinstance(value, Mapping):
            held = value
        elif isinstance(value, list | tuple):
            held = dict(enumerate(value))
        elif type(value).__module__.startswith(("workflows", "oneflow_core")):
            slots = getattr(type(value), "__slots__", ())
            held = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
        else:
            held = {}
        for name, part in held.items():
            _collect(part, f"{path}.{name}", found, seen)


def test_every_piece_of_state_comes_back(alone: Worker, corpus: Path, tmp_path: Path) -> None:
    changes = {"objective__schedule": "adaptive", "objective__adaptive_every": 4, "watch__log_every": 1}
    config = tiny_config(
        corpus, tmp_path, budget__steps=15, checkpoint__every_steps=10, checkpoint__keep=9, **changes
    )
    materials, told = gather(config), dict[str, dict[int, float]]()

    def train(root: str) -> Trainer:
        losses = told.setdefault(root, {})

        def tell(progress: Progress) -> None:
            losses[progress.step] = progress.metrics["train/loss"]

        trainer = Trainer(config, materials, alone, str(tmp_path / root), hooks=Hooks(progress=tell))
        trainer.run()
        return trainer

    whole = everything(train("whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    (tmp_path / "resumed" / "commits" / "step-000000015.json").unlink()
    resumed = everything(train("resumed"))
    assert told["resumed"] == {step: told["whole"][step] for step in range(11, 16)}
    assert whole.keys() == resumed.keys()
    for path, value in whole.items():
        same = (
            torch.equal(value, resumed[path]) if isinstance(value, torch.Tensor) else value == resumed[path]
        )
        assert same, path
    kinds = (
        "model.",
        "optimiser._moments.exp_avg_sq.",
        "optimiser._moments.momentum.",
        "optimiser._average.",
    )
    assert all(
        any(path.startswith(kind) for path in whole) for kind in (*kinds, "_pace._tables", "optimiser._adam")
    )


def test_saves_also_come_by_the_clock(alone: Worker, corpus: Path, tmp_path: Path) -> None:
    for minutes, steps in ((1e-6, [3, 2, 1]), (60.0, [3])):
        changes = {"budget__steps": 3, "checkpoint__every_minutes": minutes, "checkpoint__keep": 9}
        config = tiny_config(corpus, tmp_path, checkpoint__every_steps=1000, **changes)
        root = str(tmp_path / str(minutes))
        Trainer(config, gather(config), alone, root).run()
        assert committed_steps(root) == steps
