"""What the benchmark serve makes of its turns, and that all sides are asked the same."""

from __future__ import annotations

import pytest

from workflows.bench.serve import KINDS, _result, offline, prompts


def test_rates_and_ratios_by_hand() -> None:
    seconds = {
        ("served", "caption"): [2.0, 2.0],
        ("served", "t2i"): [3.0, 3.0],
        ("one at a time", "caption"): [7.0, 7.0],
        ("one at a time", "t2i"): [6.0, 6.0],
        ("loop", "caption"): [1.5, 1.5],
        ("loop", "t2i"): [3.0, 3.0],
    }
    told = _result(10, seconds, {"alone_s": 0.3}).to_json()
    assert told["ours"] == pytest.approx(20 / 5) and told["peer"] == pytest.approx(20 / 4.5)
    assert told["ratio"] == pytest.approx(4.5 / 5)
    assert told["batching_speedup"] == pytest.approx(3.5)
    assert told["ratio_by_kind"] == pytest.approx({"caption": 0.75, "t2i": 1.0})
    assert told["documents_per_s"]["one at a time, t2i"] == pytest.approx(10 / 6)


def test_the_loop_makes_the_documents_that_are_asked_of_the_servers() -> None:
    asked = {kind: prompts(kind, 2) for kind in KINDS}
    assert {item.target for item in asked["caption"]} == {"text"} and len(asked["caption"]) == 2
    assert {item.target for item in asked["t2i"]} == {"image"} and len(asked["t2i"]) == 2
    assert prompts("caption", 2) == asked["caption"]
    assert offline(2)(kind="caption")["seconds"] > 0
