"""The prompts of the benchmark, which both sides are given."""

from __future__ import annotations

from workflows.bench import evaluate
from workflows.evaluation.run import items_digest
from workflows.evaluation.suites import shapes


def test_the_prompts_are_as_many_as_asked_and_none_twice() -> None:
    items = shapes.items(evaluate.config_of(1000))
    assert abs(len(items) - 1000) <= 3 and len({item.id for item in items}) == len(items)
    assert {item.target for item in items} == {"image", "text", "document"}
    assert not any(item.control for item in items) and {item.split for item in items} == {"heldout_random"}
    assert items_digest(evaluate.config_of(1000)) == items_digest(evaluate.config_of(1000))
