"""What tracking costs: the arithmetic over intervals, and the clock around what is added."""

from __future__ import annotations

import time

import pytest

from workflows.bench.tracking import EVERY, Switch, _result


def test_the_overhead_is_the_median_of_pairs_and_its_parts_add_up() -> None:
    off = [{"cpu_s": 10.0 * EVERY * slow, "wall_s": 1.0, "parts": {}} for slow in (1, 2, 1, 1, 3)]
    shares = (0.01, 0.03, -0.02, 0.02, 0.5)
    on = [
        {
            "cpu_s": interval["cpu_s"] * (1 + share),
            "wall_s": 2.0,
            "parts": {"a": 0.1 * EVERY, "delivery": 0.3 * EVERY},
        }
        for interval, share in zip(off, shares, strict=True)
    ]
    told = _result(on, off).to_json()
    assert told["overhead"] == pytest.approx(0.02)
    assert told["parts"] == pytest.approx({"a": 0.01, "delivery": 0.03})
    assert told["accounted"] == pytest.approx(0.04)
    assert told["overhead_quartiles"]["low"] < told["overhead"] < told["overhead_quartiles"]["high"]
    assert told["wall_s"] == pytest.approx({"on": 2.0 / EVERY, "off": 1.0 / EVERY})


def test_what_is_switched_off_does_nothing_and_what_is_on_counts_its_work_and_not_its_waiting() -> None:
    switch = Switch()

    def work(loops: int) -> int:
        time.sleep(0.2)
        return sum(i * i for i in range(loops))

    switched = switch.switched(work, "work")
    assert switched(300_000) == {} and not switch.spent
    switch.on, begun = True, time.thread_time()
    assert switched(300_000) == sum(i * i for i in range(300_000))
    assert 0 < switch.spent["work"] <= time.thread_time() - begun
