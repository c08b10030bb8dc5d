"""DPG-Bench through the suite: ELLA's and DSG's figures from recorded answers, judges, failures, bad rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneflow_core.shapes import canonical_caption, parse, render, sample_in_split
from tests.core.tiny_judges import tiny_vilt
from tests.reference import shared, shared_json
from tests.workflows.evaluation.oracle import scene_for
from workflows.errors import UsageError
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites import dpg_bench as suite

from .made import FAILED, config, drawn, encoded, png, text, written

HEADER = "item_id,text,proposition_id,dependency,category_broad,category_detailed,question_natural_language\n"
ROWS = """a,a red dog on a mat,1,0,entity,whole,Is there a dog?
a,a red dog on a mat,2,1,attribute,color,Is the dog red?
a,a red dog on a mat,3,2,relation,spatial,Is the red dog on a mat?
b,a cat,1,0,entity,whole,Is there a cat?
c,broken,1,"5, right",entity,whole,Is it?
d,dangling,1,4,entity,whole,Is it?
"""


def small(tmp_path: Path, content: str = HEADER + ROWS, **values: Any) -> Any:
    return config(
        "dpg-bench",
        **(
            {"data__questions": written(tmp_path / "questions.csv", content), "judge__kind": "served"}
            | values
        ),
    )


@pytest.mark.parametrize("model", ["mplug", "instructblip"])
def test_recorded_answers_give_the_figures_of_both_scripts(model: str) -> None:
    golden = shared_json(f"dsg1k/golden_{model}_sd2dot1.json")
    recorded: dict[tuple[str, str], str] = {}
    with shared(f"dsg1k/vqa_answers_{model}_sd2dot1.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            recorded[row["item_id"], row["question"]] = row["answer"]
    given = config(
        "dpg-bench",
        data__questions=shared("dsg1k/dsg1k_questions.csv"),
        judge__kind="served",
        images_per_prompt=1,
    )
    items = [i for i in suite.items(given) if i.id.removeprefix("dpg-bench/") in golden["items"]]
    rules = suite.rules(given, {"name": model})
    refused = golden["excluded_malformed_dependency"] + golden["excluded_dangling_parent"]
    assert len(items) == len(golden["items"]) and sorted(rules["refused"]["rows"]) == sorted(refused)

    def ask(asked: Sequence[Item]) -> list[Output]:
        return [text(recorded[i.id.split("/")[1], str(i.prompt[1])]) for i in asked]

    judged = suite.judge(items, [drawn(png())] * len(items), config=given, ask=ask, rules=rules)
    assert "6 prompts were refused and not asked" in judged.notes[0] and len(judged.notes) == 1
    for item, scores in zip(items, judged.scores, strict=True):
        wanted = golden["items"][item.id.removeprefix("dpg-bench/")]
        assert scores["dpg/dpg_rule"] == pytest.approx(100 * wanted["dpg_score"])
        assert scores["dpg/dsg_rule"] == pytest.approx(100 * wanted["dsg_with_dependency"])
        assert scores["dpg/no_dependencies"] == pytest.approx(100 * wanted["without_dependency"])
    found = suite.figures(judged)
    assert found["dpg/dpg_rule"].estimate.value == pytest.approx(golden["DPG-Bench score"])
    assert found["dpg/dsg_rule"].estimate.value == pytest.approx(golden["DSG score"])
    for level in ("L1", "L2"):
        for category, wanted in golden[level].items():
            slug = category.replace(" - ", "-").replace(" ", "_")
            assert found[f"dpg/category/{slug}"].estimate.value == pytest.approx(wanted)
    for figure in found.values():
        assert figure.estimate.low <= figure.estimate.value <= figure.estimate.high


def test_answers_of_the_served_model_count_only_as_yes_and_failures_as_no(tmp_path: Path) -> None:
    given = small(tmp_path, images_per_prompt=2)
    items = suite.items(given)
    assert [i.id for i in items] == ["dpg-bench/a", "dpg-bench/a/1", "dpg-bench/b", "dpg-bench/b/1"]
    assert len({i.seed for i in items}) == 4 and items[0].scene == items[1].scene
    asked: list[Item] = []

    def ask(batch: Sequence[Item]) -> list[Output]:
        asked.extend(batch)
        said = {
            "Is there a dog?": text(" Yes\n"),
            "Is the dog red?": FAILED,
            "Is there a cat?": text("yes, a cat"),
        }
        return [said.get(str(i.prompt[1]), text("yes")) for i in batch]

    judged = suite.judge(
        items, [drawn(png()), FAILED, drawn(png()), drawn(b"no picture")], config=given, ask=ask
    )
    assert {i.target for i in asked} == {"text"} and len(asked) == 4 and asked[0].prompt[0] == png()
    assert judged.scores[0]["dpg/dpg_rule"] == pytest.approx(100 / 3)
    assert judged.scores[0]["dpg/no_dependencies"] == pytest.approx(200 / 3)
    assert [s["dpg/dsg_rule"] for s in judged.scores] == [pytest.approx(100 / 3), 0, 0, 0]
    assert "2 of 4 items have no picture and score 0; the first: HTTP 500: down" in judged.notes[0]
    assert "the judge failed on 1 questions" in judged.notes[1]
    assert suite.figures(judged)["dpg/dpg_rule"].estimate.count == 4


def test_rules_tell_judges_and_files_apart(tmp_path: Path) -> None:
    vilt = {
        f"judge__{k}": v for k, v in {"kind": "huggingface", "answerer": tiny_vilt(tmp_path / "vilt")}.items()
    }
    served = suite.rules(small(tmp_path), {"name": "m", "version": "1", "run_id": ""})
    assert served["judge"]["model"]["version"] == "1" and "do not compare" in served["judge"]["note"]
    assert served["refused"]["count"] == 2
    by_vilt = suite.rules(small(tmp_path, **vilt))
    assert by_vilt["judge"]["id"].startswith("vilt@") and by_vilt["rule"] == served["rule"]
    tiny_vilt(tmp_path / "vilt", seed=1)
    assert suite.rules(small(tmp_path, **vilt | {"judge__device": "cpu:0"}))["judge"] != by_vilt["judge"]
    items = suite.items(small(tmp_path, **vilt))
    judged = suite.judge(items, [drawn(png())] * len(items), config=small(tmp_path, **vilt))
    assert all(
        s["dpg/no_dependencies"] in (0, pytest.approx(100 / 3), pytest.approx(200 / 3), 100)
        for s in judged.scores
    )


def test_shapes_are_judged_exactly() -> None:
    """A picture of what the prompt says is right in all; one of another scene is not; a blank one in nothing."""
    given = config("dpg-bench-shapes", limit=40)
    items = suite.items(given)
    right = [drawn(encoded(render(scene_for(parse(str(i.prompt[0])) or [])))) for i in items]
    judged = suite.judge(items, right, config=given, rules=suite.rules(given))
    assert all(score == 100 for scores in judged.scores for score in scores.values()) and not judged.notes
    found = suite.figures(judged)
    assert {"dpg-shapes/category/relation-spatial", "dpg-shapes/category/attribute-color"} <= found.keys()
    rng = np.random.default_rng(0)
    other = [drawn(encoded(render(sample_in_split(rng, "train")))) for _ in items]
    wrong = suite.figures(suite.judge(items, other, config=given))
    order = [wrong[f"dpg-shapes/{n}"].estimate.value for n in ("dpg_rule", "dsg_rule", "no_dependencies")]
    assert 0 < order[0] <= order[1] <= order[2] < 80
    blank = [drawn(encoded(np.full((64, 64, 3), 244, np.uint8)))] * len(items)
    assert (
        suite.figures(suite.judge(items, blank, config=given))["dpg-shapes/no_dependencies"].estimate.value
        == 0
    )
    assert canonical_caption(scene_for(parse(str(items[0].prompt[0])) or [])) == items[0].prompt[0]


def test_files_and_judges_that_are_missing_are_refused(tmp_path: Path) -> None:
    for content in ("", "a,b\n1,2\n", HEADER, HEADER + 'c,broken,1,"5, right",entity,whole,Is it?\n'):
        with pytest.raises(UsageError, match=r"data.questions .*dpg_bench.csv"):
            suite.items(small(tmp_path, content))
    with pytest.raises(UsageError, match="data.questions is not set"):
        suite.rules(config("dpg-bench"))
    with pytest.raises(UsageError, match=r"judge.answerer: it is not set.*served"):
        suite.rules(small(tmp_path, judge__kind="huggingface"))
    with pytest.raises(UsageError, match="judge.answerer: no model that answers"):
        suite.rules(small(tmp_path, judge__kind="huggingface", judge__answerer=tmp_path))
    with pytest.raises(UsageError, match="no deployment is at hand"):
        suite.judge([], [], config=small(tmp_path))
