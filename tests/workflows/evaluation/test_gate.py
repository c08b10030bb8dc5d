"""The gate's decisions."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pytest

from oneflow_core.metrics.paired import Pairs
from workflows.config import load
from workflows.errors import UsageError
from workflows.evaluation.config import EvaluateConfig, GateConfig, Threshold
from workflows.evaluation.gate import Champion, Verdict, judge
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
@pytest.mark.parametrize("lower", [False, True])
def test_without_a_test_a_figure_may_not_fall_behind_by_more_than_the_tolerance(
    champion: float, passed: bool, lower: bool
) -> None:
    theirs = 1 - champion if lower else champion
    held = Champion("3", {"exact": theirs}, {"exact": "its items are gone"})
    verdict = judge(GOOD, GATE, held, lower={"exact"} if lower else ())
    assert verdict.passed == passed and len(verdict.checks) == 3
    bound = verdict.checks[2].bound
    assert "version 3" in bound and verdict.checks[2].evidence == "no test, its items are gone"
    assert bound.startswith("<=" if lower else ">=")


def pairs(ours: Sequence[float], theirs: Sequence[float]) -> Pairs:
    return Pairs(np.array(ours, float)[:, None], np.array(theirs, float)[:, None])


def against(found: Mapping[str, Pairs], gate: GateConfig, lower: Collection[str] = ()) -> Verdict:
    metrics = {name: (float(p.ours.mean()), float(p.theirs.mean())) for name, p in found.items()}
    champion = Champion("3", {name: theirs for name, (_, theirs) in metrics.items()}, found)
    return judge(GOOD | {name: ours for name, (ours, _) in metrics.items()}, gate, champion, (), lower)


def test_only_a_significant_regression_refuses() -> None:
    right, wrong = [1.0] * 100, [0.0] * 100
    none = GATE.model_copy(update={"tolerance": 0.0})
    # 5 of 100 lost and none won is a fall of 0.05 with p = 1/32, 4 lost one of 0.04 with p = 1/16.
    for lost, passed, p in ((5, False, "0.031"), (4, True, "0.062")):
        verdict = against({"exact": pairs([*wrong[:lost], *right[lost:]], right)}, none)
        assert (
            verdict.passed == passed
            and f"worse by more with p {p} (McNemar's exact test, Holm over 1" in str(verdict.checks[2])
        )
    # A larger fall, of which most goes both ways, is noise; plain tolerance would refuse it.
    noisy = pairs([*[0.0] * 30, *[1.0] * 70], [*[1.0] * 30, *[0.0] * 24, *[1.0] * 46])
    assert against({"exact": noisy}, none).passed and noisy.difference().value == pytest.approx(-0.06)
    # As clear a fall, but within what is tolerated.
    fall = {"exact": pairs([*wrong[:12], *right[12:]], right)}
    assert not against(fall, GATE).passed
    assert against(fall, GATE.model_copy(update={"tolerance": 0.1})).passed


def test_several_figures_are_corrected_and_less_may_be_better() -> None:
    gate = GATE.model_copy(update={"no_regression": ["a", "b"], "tolerance": 0.0})
    fallen = pairs([0.0] * 5 + [1.0] * 95, [1.0] * 100)
    same = pairs([1.0] * 100, [1.0] * 100)
    found = against({"a": fallen, "b": same}, gate)
    assert found.passed and "p 0.062 (McNemar's exact test, Holm over 2, alpha 0.05)" in str(found.checks[2])
    both = against({"a": fallen, "b": pairs([0.0] * 6 + [1.0] * 94, [1.0] * 100)}, gate)
    assert [check.holds for check in both.checks[2:]] == [False, False]
    # Where less is better the same differences are an improvement.
    assert against({"a": fallen, "b": same}, gate.model_copy(update={"no_regression": ["a"]}), {"a"}).passed
    worse = against({"a": pairs([1.0] * 100, [0.0] * 9 + [1.0] * 91)}, gate, {"a"})
    assert not worse.passed and "<= 0.910 (champion 0.910 of version 3, plus 0)" in worse.why


def test_what_the_champion_has_and_this_one_lacks_refuses() -> None:
    verdict = judge({"colour": 1.0, "ratio": 1.0}, GATE, Champion("3", {"exact": 0.5}, {}))
    assert not verdict.passed and "exact not measured misses" in verdict.why


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
