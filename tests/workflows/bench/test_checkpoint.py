"""The benchmark of checkpoints on a state of some kilobytes: both sides save it and tidy up."""

from pathlib import Path

import pytest

from tests.workflows.training.conftest import alone
from workflows.bench.checkpoint import Costs, Size, Steps, _compared
from workflows.training.parallel import Worker
from workflows.training.retention import committed_steps

__all__ = ["alone"]


def test_both_sides_are_measured_and_tidied(alone: Worker, tmp_path: Path) -> None:
    steps = Steps(Size(width=16, layers=2, tokens=4), alone)
    for costs in _compared(steps, str(tmp_path), 2, steps.step()):
        assert all(blocked > 0 for blocked in costs.blocked) and len(costs.full) == 2
        assert all(full > 0 for full in costs.full) and costs.first_blocked > 0
    assert committed_steps(str(tmp_path / "ours")) == [3]
    assert list((tmp_path / "peer").rglob("*.distcp")) == []


def test_what_is_told_are_medians() -> None:
    told = Costs([1.0, 3.0, 2.0], [10.0, 20.0, 40.0], [2.0, 2.0, 5.0]).told(200.0)
    assert told["blocked_share"] == pytest.approx(0.1) and told["mb_per_s"] == 10.0 and told["stall_s"] == 2.0
