"""GenEval through the suite: real metadata, exact judging on shapes, questions, a detector, failures, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneflow_core.shapes import parse, render
from tests.core.tiny_dual import tiny_clip
from tests.core.tiny_judges import tiny_yolos
from tests.reference import shared
from tests.workflows.evaluation.oracle import scene_for
from workflows.errors import UsageError
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites import geneval as suite

from .made import FAILED, config, drawn, encoded, png, text, written

LINES = """{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
{"tag": "counting", "include": [{"class": "bus", "count": 2}], "exclude": [{"class": "bus", "count": 3}], "prompt": "a photo of two buses"}
{"tag": "position", "include": [{"class": "cow", "count": 1}, {"class": "tie", "count": 1, "position": ["left of", 0]}], "prompt": "a photo of a tie left of a cow"}
{"tag": "color_attr", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"}
{"tag": "position", "include": [{"class": "cow", "count": 1, "position": ["left of", 0]}], "prompt": "refers to itself"}
no json
{"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "mauve"}], "prompt": "no colour of GenEval"}
"""  # noqa: E501


def small(tmp_path: Path, content: str = LINES, **values: Any) -> Any:
    metadata = written(tmp_path / "metadata.jsonl", content)
    return config(
        "geneval", **({"data__metadata": metadata, "judge__kind": "served", "images_per_prompt": 1} | values)
    )


def test_the_real_metadata_is_read_whole() -> None:
    given = config("geneval", data__metadata=shared("prompts/geneval_metadata.jsonl"), judge__kind="served")
    items, rules = suite.items(given), suite.rules(given)
    assert len(items) == 4 * 277 and rules["refused"]["count"] == 0 and rules["images_per_prompt"] == 4
    assert {i.detail for i in items} == {
        *("single_object", "two_object", "counting", "colors", "position", "color_attr")
    }


def test_shapes_are_judged_exactly() -> None:
    """A picture of what the prompt says is right, whatever the task; blank ones are wrong, and so is another number."""
    given = config("geneval-shapes", limit=60)
    items = suite.items(given)
    scenes = [scene_for(parse(str(i.prompt[0])) or []) for i in items]
    right = suite.judge(
        items, [drawn(encoded(render(s))) for s in scenes], config=given, rules=suite.rules(given)
    )
    found = suite.figures(right)
    assert {v.estimate.value for v in found.values()} == {1.0} and not right.notes
    rest = {f"geneval-shapes/{name}" for name in (suite.OVERALL, suite.IMAGES, suite.PROMPTS)}
    assert {f"geneval-shapes/{i.detail}" for i in items} == found.keys() - rest
    blank = [drawn(encoded(np.full((64, 64, 3), 244, np.uint8)))] * len(items)
    assert (
        suite.figures(suite.judge(items, blank, config=given))["geneval-shapes/overall"].estimate.value == 0
    )
    turned = [drawn(encoded(np.ascontiguousarray(render(s)[::-1, ::-1]))) for s in scenes]
    found = suite.figures(suite.judge(items, turned, config=given))
    assert (
        found["geneval-shapes/position"].estimate.value == 0
        and found["geneval-shapes/counting"].estimate.value > 0
    )


def test_a_judge_that_answers_questions_has_a_rule_of_another_name(tmp_path: Path) -> None:
    given = small(tmp_path)
    items, rules = suite.items(given), suite.rules(given)
    assert rules["rule"] == "geneval-questions" and rules["refused"]["count"] == 3
    asked: list[str] = []

    def ask(batch: Sequence[Item]) -> list[Output]:
        asked.extend(str(i.prompt[1]) for i in batch)
        return [text("no" if "left" in str(i.prompt[1]) else "yes") for i in batch]

    judged = suite.judge(items, [drawn(png())] * 3 + [FAILED], config=given, ask=ask, rules=rules)
    assert asked == [
        "Is there a dog in the picture?",
        "Are there exactly two buses in the picture?",
        "Is there a cow in the picture?",
        "Is there a tie in the picture?",
        "Is the tie to the left of the cow?",
    ]
    assert [s["geneval-questions/images_correct"] for s in judged.scores] == [1, 1, 0, 0]
    tie, cup = (v.reason for v in judged.readings[2:])
    assert tie == "not answered yes: Is the tie to the left of the cow?"
    assert cup == "not answered yes: Is there a cup in the picture?"
    assert "3 prompts were refused" in judged.notes[0] and "1 of 4 items have no picture" in judged.notes[1]


def test_overall_is_the_mean_of_tasks_and_prompts_need_one_right_picture(tmp_path: Path) -> None:
    """Two pictures of each prompt, by hand: dog 1 1, bus 1 0, tie 0 0, cup 0 1."""
    given = small(tmp_path, images_per_prompt=2)
    items = suite.items(given)
    right = {"dog": "11", "buses": "10", "tie": "00", "cup": "01"}

    def ask(batch: Sequence[Item]) -> list[Output]:
        said = []
        for item in batch:
            word, second = next(w for w in right if w in truth[item.id.split("/q")[0]]), "/1/q" in item.id
            said.append(text("yes" if right[word][second] == "1" else "no"))
        return said

    truth = {i.id: str(i.prompt[0]) for i in items}
    found = suite.figures(suite.judge(items, [drawn(png())] * 8, config=given, ask=ask))
    assert found["geneval-questions/images_correct"].estimate.value == pytest.approx(4 / 8)
    assert found["geneval-questions/overall"].estimate.value == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert found["geneval-questions/prompts_correct"].estimate.value == pytest.approx(3 / 4)
    overall = found["geneval-questions/overall"]
    assert overall.combine is not None
    parts = np.array([overall.parts[i.id] for i in items])
    assert overall.combine(parts) == pytest.approx(overall.estimate.value)
    assert overall.combine(parts[:4]) == pytest.approx((1 + 0.5) / 2)


def test_a_detector_and_a_clip_by_path_judge(tmp_path: Path) -> None:
    judges = {
        "detector": tiny_yolos(tmp_path / "yolos"),
        "colours": tiny_clip(tmp_path / "clip"),
        "kind": "huggingface",
    }
    given = small(tmp_path, **{f"judge__{name}": value for name, value in judges.items()})
    rules = suite.rules(given)
    assert rules["rule"] == "geneval" and rules["judge"]["id"].startswith("yolos@")
    assert rules["judge"]["colours"].startswith("clip@") and "masks" in rules["difference"]
    items = suite.items(given)
    judged = suite.judge(items, [drawn(png())] * 4, config=given, rules=rules)
    assert len(judged.readings) == 4 and all(v.correct or v.reason for v in judged.readings)
    assert judged.readings[1].reason.startswith("expected bus>=2, found 0")
    assert {"geneval/overall", "geneval/position"} <= suite.figures(judged).keys()


def test_files_and_judges_that_are_missing_are_refused(tmp_path: Path) -> None:
    for content in ("", "{}", "[1]\n", '{"tag": "x", "include": [], "prompt": "y"}'):
        with pytest.raises(UsageError, match=r"data.metadata .*evaluation_metadata.jsonl"):
            suite.items(small(tmp_path, content))
    with pytest.raises(UsageError, match="data.metadata is not set"):
        suite.items(config("geneval"))
    with pytest.raises(UsageError, match="judge.answerer: it is not set"):
        suite.rules(small(tmp_path, judge__kind="huggingface"))
    detector = {"judge__kind": "huggingface", "judge__detector": tiny_yolos(tmp_path / "yolos")}
    with pytest.raises(UsageError, match=r"judge.colours is not set"):
        suite.rules(small(tmp_path, **detector))
    with pytest.raises(UsageError, match=r"judge.detector: no object detector"):
        suite.rules(small(tmp_path, **detector | {"judge__detector": tmp_path, "judge__colours": tmp_path}))
