"""The suite of captions from files to figures: pycocoevalcap's figures, layouts of files, failures, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_core.metrics.caption_tokens import caption_tokens
from oneflow_core.metrics.captions import cider
from oneflow_core.metrics.cider import CiderTable
from tests.reference import shared, shared_json
from workflows.errors import UsageError
from workflows.evaluation.item import Output
from workflows.evaluation.suites import coco_captions as suite
from workflows.evaluation.suites.files import pixels

from .made import FAILED, config, folder, text, written

REFERENCES = {
    "1": ["a red cat sits", "one red cat"],
    "2": ["two dogs run fast"],
    "3": ["a blue car", "the blue car stands"],
}


def small(tmp_path: Path, references: Any = REFERENCES, **values: Any) -> Any:
    images = folder(tmp_path / "images", [f"{name}.png" for name in ("1", "2", "3")])
    captions = written(tmp_path / "captions.json", references)
    return config("coco-captions", data__captions=captions, data__images=images, **values)


def figures(given: Any, said: dict[str, Output]) -> Any:
    items = suite.items(given)
    outputs = [said[item.id.split("/", 1)[1]] for item in items]
    judged = suite.judge(items, outputs, config=given, rules=suite.rules(given))
    return judged, suite.figures(judged)


@pytest.mark.parametrize("system", ["human_leave_one_out", "shuffled_images", "one_constant_caption"])
def test_figures_are_those_of_pycocoevalcap(system: str, tmp_path: Path) -> None:
    golden = shared_json("captions_coco/golden_pycocoevalcap.json")[system]
    said = shared_json("captions_coco/hypotheses.json")[system]
    images = folder(tmp_path / "images", [f"COCO_val2014_{name}.jpg" for name in said], "JPEG")
    given = config(
        "coco-captions", data__captions=shared("captions_coco/refs.json"), data__images=images, resamples=40
    )
    judged, found = figures(given, {name: text(caption) for name, caption in said.items()})
    assert found["coco/cider"].estimate.value == pytest.approx(golden["CIDEr"], rel=1e-12)
    assert found["coco/bleu4"].estimate.value == pytest.approx(golden["BLEU"][3], rel=1e-12)
    assert found["coco/rouge_l"].estimate.value == pytest.approx(golden["ROUGE_L"], rel=1e-12)
    for item, scores in zip(judged.items, judged.scores, strict=True):
        assert scores["coco/cider"] == pytest.approx(
            golden["CIDEr_per_image"][item.id.split("/")[1]], abs=1e-12
        )
    for name in ("coco/cider", "coco/bleu4", "coco/rouge_l"):
        figure = found[name]
        assert (
            figure.estimate.low < figure.estimate.value < figure.estimate.high and figure.estimate.count == 40
        )
    if system == "human_leave_one_out":
        assert found["coco/cider"].controls["shuffled"] < 0.3 * golden["CIDEr"]


def test_cider_of_a_bootstrap_resample_is_cider_of_the_resampled_set(tmp_path: Path) -> None:
    """The interval's statistic against the plain figure of the set that was drawn."""
    rng = np.random.default_rng(0)
    words = ["a", "red", "blue", "cat", "dog", "runs", "sits", "on", "the", "mat"]
    made = {str(n): caption_tokens(" ".join(rng.choice(words, 6))) for n in range(6)}
    true = {n: [caption_tokens(" ".join(rng.choice(words, 6))) for _ in range(3)] for n in made}
    table = CiderTable(made, true)
    for size in (4, 6, 6, 9):
        drawn = rng.integers(6, size=size)
        weight = np.bincount(drawn, minlength=6).astype(float)
        doubled = {f"{place}": true[str(n)] for place, n in enumerate(drawn)}
        each = cider({f"{place}": made[str(n)] for place, n in enumerate(drawn)}, doubled)
        assert weight @ table.scores(weight) / size == pytest.approx(sum(each.values()) / size, rel=1e-12)


def test_a_failed_item_counts_as_an_empty_caption(tmp_path: Path) -> None:
    given = small(tmp_path)
    said = {"1": text("a red cat sits"), "2": text("two dogs run fast")}
    judged, found = figures(given, said | {"3": FAILED})
    _, empty = figures(given, said | {"3": text("")})
    assert found == empty and judged.scores[2] == {"coco/cider": 0, "coco/rouge_l": 0}
    assert found["coco/rouge_l"].estimate.count == 3


@pytest.mark.parametrize(
    "tree",
    [
        {
            "images": [{"id": n, "file_name": f"{n}.png"} for n in (1, 2, 3)],
            "annotations": [
                *({"image_id": int(n), "caption": c} for n, cs in REFERENCES.items() for c in cs),
                {"image_id": 2},
            ],
        },
        {
            "dataset": "coco",
            "images": [
                *(
                    {"filename": f"{n}.png", "split": "test", "sentences": [{"raw": c} for c in cs]}
                    for n, cs in REFERENCES.items()
                ),
                {"filename": "9.png", "split": "train", "sentences": [{"raw": "x"}]},
                {"filename": "8.png", "split": "test"},
            ],
        },
        REFERENCES | {"7": "no list"},
    ],
    ids=["coco", "karpathy", "plain"],
)
def test_layouts_that_people_have_read_alike_and_bad_rows_are_counted(tree: Any, tmp_path: Path) -> None:
    given = small(tmp_path, tree, data__split="test")
    items, rules = suite.items(given), suite.rules(given)
    assert [item.truth for item in items] == [item.truth for item in suite.items(small(tmp_path))]
    assert rules["refused"]["count"] == 1
    judged = suite.judge(items, [text("a cat")] * 3, config=given, rules=rules)
    assert "1 captions were refused" in judged.notes[0]


def test_limit_and_seed_decide_the_items_and_the_files_decide_the_rules(tmp_path: Path) -> None:
    names = {tuple(i.id for i in suite.items(small(tmp_path, limit=2, seed=seed))) for seed in range(8)}
    assert len(names) > 1 and all(len(one) == 2 for one in names)
    assert suite.items(small(tmp_path, limit=2)) == suite.items(small(tmp_path, limit=2))
    assert suite.rules(small(tmp_path, limit=2))["limit"] == 2
    before = suite.rules(small(tmp_path))
    (tmp_path / "moved").mkdir()
    assert suite.rules(small(tmp_path / "moved")) == before
    changed = suite.rules(small(tmp_path, REFERENCES | {"1": ["another caption"]}))
    assert changed["files"] != before["files"] and changed["pictures"] == before["pictures"]
    given = small(tmp_path)
    (tmp_path / "images" / "2.png").write_bytes((tmp_path / "images" / "1.png").read_bytes())
    assert suite.rules(given)["pictures"] != before["pictures"]


def test_what_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.captions is not set.*cocodataset.org"):
        suite.rules(config("coco-captions"))
    with pytest.raises(UsageError, match="there is no such file"):
        suite.items(config("coco-captions", data__captions=tmp_path / "none.json", data__images=tmp_path))
    for content in ("[]", "no json", '{"a": 1}', "{}", '{"images": []}'):
        with pytest.raises(UsageError, match="data.captions"):
            suite.items(small(tmp_path, content))
    given = small(tmp_path, REFERENCES | {"4": ["a fourth"]})
    with pytest.raises(UsageError, match="picture 4 is not there, nor are 0 more of 4"):
        suite.items(given)
    (tmp_path / "images" / "3.png").write_bytes(b"\x89PNG no picture")
    rules = suite.rules(small(tmp_path, REFERENCES | {"4": ["a fourth"]}, data__allow_missing=True))
    assert rules["refused"]["count"] == 1 or rules["refused"]["count"] == 2
    assert len(suite.items(small(tmp_path, REFERENCES | {"4": ["a fourth"]}, data__allow_missing=True))) in (
        2,
        3,
    )


def test_large_pictures_are_shrunk_and_others_go_as_they_are(tmp_path: Path) -> None:
    given = small(tmp_path)
    assert suite.items(given)[0].prompt == ((tmp_path / "images" / "1.png").read_bytes(),)
    Image.new("RGB", (3000, 1000)).save(tmp_path / "images" / "1.png")
    Image.new("CMYK", (30, 10)).save(tmp_path / "images" / "2.jpg")
    (tmp_path / "images" / "2.png").unlink()
    shapes = [pixels(item.prompt[0]).shape for item in suite.items(given)]  # type: ignore[arg-type]
    assert shapes[:2] == [(341, 1024, 3), (10, 30, 3)]
    assert all(item.prompt[0][:4] == b"\x89PNG" for item in suite.items(given))
