"""The trunk's benchmark at a tiny size."""

import pytest

from tests.core.words import TINY
from workflows.bench import trunk
from workflows.bench.trunk import Size, measure
from workflows.errors import OneFlowError

SIZES = {"some": Size(TINY, 3, 4, longest=20), "one": Size(TINY, 1, 4, longest=20)}


def test_a_tiny_run_tells_the_contracts_keys() -> None:
    told = measure(2, SIZES).to_json()
    assert {"name", "ours", "peer", "unit", "runs", "machine", "versions", "by_size"} <= set(told)
    assert set(told["by_size"]) == set(SIZES)
    assert told["by_size"]["some"]["ratio"] == pytest.approx(told["ratio"])
    for size in told["by_size"].values():
        assert 0 < size["share"] < 2 and 0 < size["peer_share"] < 2
        assert size["share"] / size["peer_share"] == pytest.approx(size["ratio"])


def test_sides_that_differ_are_no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(model: object) -> None:
        trunk.OneFlowModel.reset_parameters(model)

    monkeypatch.setattr(trunk, "lay_out", other)
    with pytest.raises(OneFlowError, match="the two sides differ"):
        measure(1, SIZES)
