"""GenEval's rule against verdicts of the official script's functions on random detections, and by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_core.metrics.geneval import (
    MOST,
    Detection,
    GenEvalPrompt,
    Wanted,
    judge_picture,
    kept,
    read_metadata,
    relations,
)

GOLDEN = json.loads(Path(__file__).with_name("golden_geneval.json").read_text())
"""By `evaluate` and `relative_position` of djghosh13/geneval evaluate_images.py, with its choice of boxes."""


def test_verdicts_are_those_of_the_official_functions() -> None:
    for case in GOLDEN:
        line = json.dumps(case["metadata"] | {"prompt": "p"})
        prompt = read_metadata([line])[0]["00000"]
        colours = {
            Detection(label, score, tuple(box)): colour for label, score, box, colour in case["detections"]
        }
        objects = kept(colours, prompt.tag)
        found = judge_picture(prompt, objects, lambda _, seen, c=colours: [c[one] for one in seen])
        assert found.correct == case["correct"], case
        assert found.correct == (not found.reason)
    assert 20 < sum(case["correct"] for case in GOLDEN) < len(GOLDEN) - 20


def at(x: float, y: float, side: float = 10, score: float = 1.0) -> Detection:
    return Detection("a", score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


@pytest.mark.parametrize(
    ("x", "y", "wanted"),
    [
        (-30, 0, {"left of"}),
        (30, 0, {"right of"}),
        (0, -30, {"above"}),
        (0, 30, {"below"}),
        (30, 30, {"right of", "below"}),
        (30, 12, {"right of"}),
        (1.9, 0, set()),
        (0, 0, set()),
    ],
)
def test_places_by_hand(x: float, y: float, wanted: set[str]) -> None:
    """Centres must lie apart by more than a tenth of both extents, here 2 pixels, and mostly in that direction."""
    assert relations(at(50 + x, 50 + y), at(50, 50)) == wanted


def test_all_objects_of_a_clause_lie_so_to_all_of_its_target() -> None:
    prompt = GenEvalPrompt("", "position", (Wanted("b", 1), Wanted("a", 2, relation="left of", target=0)))
    target = replace(at(50, 50), label="b")
    for xs, right in (((10, 20), True), ((10, 90), False), ((90, 10), False), ((80, 90), False)):
        objects = {"b": [target], "a": [at(x, 50) for x in xs]}
        assert judge_picture(prompt, objects, lambda _, found: []).correct == right


def test_only_confident_detections_count_and_counting_wants_more() -> None:
    seen = [at(0, 0, score=s) for s in (0.95, 0.31, 0.3, 0.2)]
    assert [d.score for d in kept(seen, "colors")["a"]] == [0.95, 0.31]
    assert [d.score for d in kept(seen, "counting")["a"]] == [0.95]
    assert kept(seen[2:], "colors") == {}
    assert len(kept([at(n, 0, score=0.5 + n / 100) for n in range(30)], "colors")["a"]) == MOST


def test_only_the_most_confident_objects_are_looked_at() -> None:
    prompt = GenEvalPrompt("", "colors", (Wanted("a", 1, "red"),))
    seen = {"a": [at(0, 0, score=0.9), at(9, 9, score=0.8)]}
    assert not judge_picture(prompt, seen, lambda _, found: ["blue", "red"][: len(found)]).correct
    assert judge_picture(prompt, seen, lambda _, found: ["red", "blue"][: len(found)]).correct


@pytest.mark.parametrize(
    "change",
    [
        {"include": []},
        {"include": [{"class": "a", "count": 0}]},
        {"include": [{"class": 3, "count": 1}]},
        {"include": [{"class": "a", "count": 1, "color": "mauve"}]},
        {"include": [{"class": "a", "count": 1, "position": ["left of", 0]}]},
        {"include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["near", 0]}]},
        {"include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["above", 1]}]},
        {"prompt": 5},
        {"tag": None},
    ],
)
def test_lines_that_say_nothing_that_can_be_judged_are_refused(change: dict[str, object]) -> None:
    good = {"tag": "x", "include": [{"class": "a", "count": 1}], "prompt": "p"}
    prompts, refused = read_metadata([json.dumps(good), "", json.dumps(good | change)])
    assert list(prompts) == ["00000"] and list(refused) == ["00002"]
