"""The trials of a sweep: a pure function of its config, so that a sweep that is started again finds them all."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from workflows.experiments.config import ExperimentConfig, SearchSettings
from workflows.storage import exists, join, read_json, write_json
from workflows.training.config import TrainConfig
from workflows.training.materials import gather
from workflows.training.progress import read_progress
from workflows.training.start import pinned
from workflows.training.train import ended
from workflows.training.worker import run_root

State = Literal["open", "finished", "stopped", "failed"]
STOPPED = "stopped.json"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep; `values` are those of the keys that vary."""

    number: int
    values: Mapping[str, Any]
    config: TrainConfig
    run_key: str
    root: str

    @property
    def state(self) -> State:
        """As its storage says; a trial that failed is open again."""
        if ended(self.config, self.root):
            return "finished"
        return "stopped" if exists(join(self.root, STOPPED)) else "open"

    def stop(self, step: int) -> None:
        """Note that it is not to go on."""
        write_json(join(self.root, STOPPED), {"step": step})

    @property
    def stopped_at(self) -> int:
        """The step at which it was stopped."""
        return int(read_json(join(self.root, STOPPED))["step"])

    @property
    def progress(self) -> Mapping[str, Any]:
        """Its step and latest metrics; empty before the first."""
        return read_progress(self.root) or {}


def plan(config: ExperimentConfig) -> list[Trial]:
    """All trials of `config`, checked. Their models are not registered, nor do they draw samples.

    Raises:
        UsageError: a key or value that no training takes.
        OneFlowError: the corpus is not there.
    """
    return [_trial(config, number, values) for number, values in enumerate(points(config))]


def points(config: ExperimentConfig) -> Iterator[dict[str, Any]]:
    """The values of each trial: `samples` times through the grid, each point with draws of its own."""
    grids = {key: search.grid for key, search in config.space.items() if search.grid}
    drawn = {key: search for key, search in config.space.items() if not search.grid}
    for sample in range(config.samples):
        for place, combination in enumerate(itertools.product(*grids.values())):
            rng = np.random.default_rng([config.seed, sample, place])
            values = {key: _draw(search, rng) for key, search in drawn.items()} | dict(
                zip(grids, combination, strict=True)
            )
            yield {key: values[key] for key in config.space}


def key_of_sweep(config: ExperimentConfig, trials: list[Trial]) -> str:
    """What makes a sweep the sweep it is: what is trained on which corpus and what varies, not how many draws."""
    materials = gather(trials[0].config)
    parts = {
        **config.model_dump(mode="json", exclude={"samples", "concurrent", "early"}),
        "train": config.train_config({}).model_dump(mode="json"),
        "corpus": materials.corpus_version,
        "start": materials.start.key if materials.start else [],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def score(metrics: Mapping[str, float], terms: Mapping[str, float]) -> float | None:
    """The weighed sum of `terms`; None where one is missing or no number."""
    if not all(math.isfinite(metrics.get(name, math.nan)) for name in terms):
        return None
    return sum(weight * metrics[name] for name, weight in terms.items())


def _draw(search: SearchSettings, rng: np.random.Generator) -> Any:
    if search.choice:
        return search.choice[int(rng.integers(len(search.choice)))]
    if search.uniform:
        return float(rng.uniform(*search.uniform))
    assert search.loguniform
    return float(np.exp(rng.uniform(*np.log(search.loguniform))))


def _name(sweep: str, values: Mapping[str, Any]) -> str:
    """By its values, not its number: what the grid holds besides does not make it another run."""
    told = {
        key.rpartition(".")[2]: f"{value:.3g}" if isinstance(value, float) else str(value)
        for key, value in values.items()
    }
    return " ".join([sweep, *(f"{key}={value}" for key, value in told.items())])


def _trial(config: ExperimentConfig, number: int, values: dict[str, Any]) -> Trial:
    tree = config.train_config(values)
    quiet = {
        "name": _name(config.name, values),
        "registry": tree.registry.model_copy(update={"name": None}),
        "watch": tree.watch.model_copy(update={"prompts": [], "captions": 0}),
    }
    settled = tree.model_copy(update=quiet)
    materials = gather(settled)
    settled = pinned(settled, materials.start)
    return Trial(number, values, settled, materials.run_key, run_root(settled, materials.run_key))
