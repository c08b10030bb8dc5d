"""What a sweep tries: grids and draws, checked before anything starts, the same whenever it is asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from tests.workflows.training.corpus import tiny_config, write_corpus
from workflows.config import load, presets
from workflows.errors import UsageError
from workflows.experiments.chart import scatter
from workflows.experiments.config import ExperimentConfig
from workflows.experiments.report import Row, SweepReport, page, table
from workflows.experiments.trials import key_of_sweep, plan, points, score


def sweep(**changes: Any) -> ExperimentConfig:
    given: dict[str, Any] = {"name": "s", "train": "pretrain-nano", **changes}
    return ExperimentConfig.model_validate(given)


def test_a_grid_is_gone_through_and_more_draws_change_none() -> None:
    space = {
        "data.lanes": {"grid": [2, 4]},
        "optimiser.lr": {"loguniform": [1e-4, 1e-2]},
        "optimiser.kind": {"grid": ["adamw", "muon"]},
    }
    few, many = (list(points(sweep(space=space, samples=n))) for n in (1, 100))
    pairs = [(p["data.lanes"], p["optimiser.kind"]) for p in few]
    assert pairs == [(2, "adamw"), (2, "muon"), (4, "adamw"), (4, "muon")]
    assert many[:4] == few and len(many) == 400 and list(few[0]) == list(space)
    logs = np.log10([p["optimiser.lr"] for p in many])
    assert len(set(logs)) == 400 and logs.min() > -4 and logs.max() < -2
    # The mean of 400 uniform draws of width 2: within four of its standard deviations.
    assert abs(logs.mean() + 3) < 4 * 2 / math.sqrt(12 * 400)
    assert list(points(sweep(space=space, seed=1)))[0] != few[0]


def test_draws_of_the_other_laws_lie_where_they_should() -> None:
    space = {"objective.copies": {"choice": [1, 2]}, "ema.decay": {"uniform": [0.5, 0.9]}}
    drawn = list(points(sweep(space=space, samples=200)))
    assert {p["objective.copies"] for p in drawn} == {1, 2}
    assert abs(np.mean([p["ema.decay"] for p in drawn]) - 0.7) < 4 * 0.4 / math.sqrt(12 * 200)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"optimiser.lr": {}}}, "give one of grid, choice, uniform, loguniform"),
        ({"space": {"optimiser.lr": {"grid": [1.0], "choice": [2.0]}}}, "give one of"),
        ({"space": {"optimiser.lr": {"uniform": [2.0, 1.0]}}}, "must lie below"),
        ({"space": {"optimiser.lr": {"loguniform": [0.0, 1.0]}}}, "must be above 0"),
        ({"space": {"objective.image_weight": {"grid": [1]}}}, "itself depends on objective.image_weight"),
        ({"space": {"seed": {"grid": [1]}}, "changes": {"seed": 2}}, "stands in changes and in space"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        sweep(**changes)


def test_a_trial_is_a_run_of_the_training_and_a_wrong_key_is_told_first(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    base = tiny_config(tmp_path / "corpus", tmp_path / "runs")
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(base.model_dump(mode="json")))
    given: dict[str, Any] = {"train": str(tmp_path / "train.yaml"), "changes": {"budget.steps": 5}}
    config = sweep(space={"optimiser.lr": {"grid": [1e-3, 2e-3]}}, **given)
    trials = plan(config)
    assert [t.config.optimiser.lr for t in trials] == [1e-3, 2e-3]
    assert {t.config.budget.steps for t in trials} == {5} and {t.config.registry.name for t in trials} == {
        None
    }
    assert len({t.run_key for t in trials}) == 2 and {t.state for t in trials} == {"open"}
    assert trials[0].config.name == "s lr=0.001"

    wider = sweep(space={"optimiser.lr": {"grid": [5e-4, 1e-3, 2e-3]}}, **given)
    assert [t.run_key for t in plan(wider)[1:]] == [t.run_key for t in trials]
    more = config.model_copy(update={"samples": 2, "concurrent": 2})
    assert key_of_sweep(more, plan(more)) == key_of_sweep(config, trials) != key_of_sweep(wider, plan(wider))
    for space, said in (
        ({"optimiser.rate": {"grid": [1]}}, 'unknown key "optimiser.rate"'),
        ({"optimiser.lr": {"grid": [-1]}}, "optimiser.lr = -1"),
    ):
        with pytest.raises(UsageError, match=said):
            plan(sweep(space=space, **given))


def test_scores_add_up_and_lack_what_is_missing() -> None:
    terms = {"a": 1.0, "b": 4.0}
    assert score({"a": 1.0, "b": 0.5, "c": 9.0}, terms) == 3.0
    assert score({"a": 1.0}, terms) is None and score({"a": 1.0, "b": math.nan}, terms) is None


def test_the_page_and_the_table_show_every_trial_and_mark_the_best() -> None:
    config = sweep(
        space={"optimiser.lr": {"grid": [1e-4, 1e-2]}, "optimiser.kind": {"grid": ["<b>", "muon"]}}
    )
    rows = [
        Row(0, {"optimiser.lr": 1e-4, "optimiser.kind": "<b>"}, "finished", 9, 2.5, "k0", "r0"),
        Row(1, {"optimiser.lr": 1e-2, "optimiser.kind": "muon"}, "finished", 9, 1.5, "k1", "r1"),
        Row(2, {"optimiser.lr": 1e-3, "optimiser.kind": "muon"}, "failed", 3, None, "k2", None, "it broke"),
    ]
    report = SweepReport("s", "key", "run", {"heldout/loss": 1.0}, "min", rows, rows[1], "page")
    lines = table(report)
    assert [line.split()[0] for line in lines] == ["trial", "1", "0", "2"] and "failed" in lines[3]
    html = page(config, report)
    assert "<b>" not in html and html.count("<circle") == 4 and "it broke" in html
    assert html.count('class="best"') == 1

    svg = ElementTree.fromstring(scatter("lr", "loss", [(1e-4, 1.0, "finished"), (1e-2, 3.0, "finished")]))
    low, high = (float(c.attrib["cy"]) for c in svg.iter("circle"))
    assert low > high
    middle = ElementTree.fromstring(scatter("lr", "l", [(v, 1.0, "finished") for v in (1e-4, 1e-3, 1e-2)]))
    xs = [float(c.attrib["cx"]) for c in middle.iter("circle")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_keys_of_the_training_are_set_as_other_keys_are() -> None:
    sets = [
        "changes.budget.steps=30",
        "changes.data.lanes=4",
        "space.optimiser.lr.loguniform=[1.0e-4, 1.0e-2]",
    ]
    config: ExperimentConfig = load("experiment", "lr-nano", [*sets, "space.seed.grid=[0, 1]"])
    assert config.changes["budget.steps"] == 30 and config.changes["data.lanes"] == 4
    assert config.space["optimiser.lr"].loguniform == (1e-4, 1e-2) and config.space["seed"].grid == [0, 1]
    trained = config.train_config(next(points(config)))
    assert (trained.budget.steps, trained.budget.max_minutes, trained.data.lanes) == (30, None, 4)


def test_the_presets_are_valid() -> None:
    for name in presets("experiment"):
        config: ExperimentConfig = load("experiment", name)
        assert config.train_config(next(points(config))).budget.steps <= 1000
