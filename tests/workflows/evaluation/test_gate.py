"""The gate's decisions."""

import math

import pytest

from workflows.config import load
from workflows.errors import UsageError
from workflows.evaluation.config import EvaluateConfig, GateConfig, Threshold
from workflows.evaluation.gate import Champion, judge
from workflows.evaluation.run import items_digest

GATE = GateConfig(
    thresholds=[
        Threshold(metric="colour", at_least=0.9),
        Threshold(metric="ratio", at_least=0.9, at_most=1.1),
    ],
    no_regression=["exact"],
    tolerance=0.02,
)
GOOD = {"colour": 0.95, "ratio": 1.0, "exact": 0.5}


def test_all_bounds_hold() -> None:
    verdict = judge(GOOD, GATE)
    assert verdict.passed and verdict.why == "all 2 checks hold" and len(verdict.checks) == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"colour": 0.89}, "colour 0.890 misses >= 0.9"),
        ({"ratio": 1.2}, "ratio 1.200 misses >= 0.9 and <= 1.1"),
        ({"ratio": 0.8}, "ratio 0.800 misses"),
        ({"colour": math.nan}, "colour not measured misses"),
    ],
)
def test_a_missed_bound_refuses_and_says_why(change: dict[str, float], why: str) -> None:
    verdict = judge(GOOD | change, GATE)
    assert not verdict.passed and why in verdict.why


def test_what_was_not_measured_refuses() -> None:
    assert not judge({"ratio": 1.0}, GATE).passed


@pytest.mark.parametrize(("champion", "passed"), [(0.5, True), (0.519, True), (0.53, False), (0.1, True)])
def test_falling_behind_the_champion_refuses(champion: float, passed: bool) -> None:
    verdict = judge(GOOD, GATE, Champion("3", {"exact": champion}))
    assert verdict.passed == passed and len(verdict.checks) == 3
    assert "champion" in verdict.checks[2].bound and "version 3" in verdict.checks[2].bound


def test_a_champion_without_the_figure_is_noted() -> None:
    verdict = judge(GOOD, GATE, Champion("3", {}), ("a note",))
    assert verdict.passed and verdict.notes == ("a note", "champion version 3 has no exact")


def test_the_preset_holds_what_the_demo_must_reach() -> None:
    config: EvaluateConfig = load("evaluate", "shapes")
    assert config.gate is not None
    bounds = {t.metric: t.at_least for t in config.gate.thresholds}
    assert bounds["t2i/single/colour"] == 0.9 and bounds["t2i/single/shape"] == 0.75
    assert bounds["caption/single/exact"] == 0.8


@pytest.mark.parametrize(
    "override",
    ["gate.thresholds=[{metric: x}]", "item.vqa=3", "items.vqa=-1", "suite=other", "gate.thresholds=[]"],
)
def test_bad_configs_are_refused(override: str) -> None:
    with pytest.raises(UsageError):
        load("evaluate", "shapes", [override])


def test_the_digest_knows_what_is_asked_and_nothing_else() -> None:
    def of(*overrides: str) -> str:
        return items_digest(load("evaluate", "shapes", overrides))

    same = ("requests.concurrency=3", "gate.tolerance=0.5", "gate=null", "serve.replicas=2")
    assert {of(o) for o in same} == {of()}
    other = ("seed=1", "items.vqa=3", "requests.image.steps=9")
    assert len({of(), *(of(o) for o in other)}) == 4
