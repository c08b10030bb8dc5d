"""Frechet distances through the suite: goldens, names of figures, failures, stored statistics, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

from oneflow_core.encoders.features import PictureFeatures, picture_features
from oneflow_core.metrics.frechet import FeatureStatistics
from tests.core.tiny_dual import tiny_siglip
from tests.core.tiny_judges import tiny_dino
from tests.reference import shared, shared_json
from workflows.errors import UsageError
from workflows.evaluation.figures import Judged
from workflows.evaluation.item import Output
from workflows.evaluation.suites import coco_fid as suite
from workflows.evaluation.suites.files import pixels, square

from .made import FAILED, config, drawn, folder, png, written

PROMPTS = "a red cat\n\ntwo dogs\na blue car\nthe mat\n"


def small(tmp_path: Path, **values: Any) -> Any:
    references = folder(tmp_path / "real", [f"{n}.png" for n in range(9)])
    given = {"data__prompts": written(tmp_path / "prompts.txt", PROMPTS), "data__references": references}
    given |= {"features__kind": "embedded", "features__square": 64, "limit": None, "resamples": 10}
    return config("coco-fid", **given | values)


def outputs(seed: int = 100) -> list[Output]:
    return [drawn(png(seed + n, (96, 64))) for n in range(4)]


def by_scipy(first: np.ndarray, second: np.ndarray) -> float:
    """The formula as pytorch-fid has it, by scipy's root of a matrix."""
    one, two = (np.cov(v, rowvar=False) for v in (first, second))
    root = linalg.sqrtm(one @ two)
    return float(np.square(first.mean(0) - second.mean(0)).sum() + np.trace(one + two - 2 * root.real))


@pytest.mark.parametrize("name", ["basic_64d", "relu_like_positive", "fewer_samples_than_dims"])
def test_the_figure_of_given_features_is_what_fid_packages_say(name: str) -> None:
    golden = shared_json("fid/golden_fid.json")["golden"][name]
    with np.load(shared(f"fid/{name}.npz"), allow_pickle=False) as held:
        real, fake = held["real"].astype(np.float64), held["fake"].astype(np.float64)
    items: list[Any] = [None] * len(fake)
    judged = Judged(items, [], [], list(fake), context=("fid", FeatureStatistics.of("x", real), 20))
    figure = suite.figures(judged)["coco-fid/fid"]
    assert figure.estimate.value == pytest.approx(golden["pytorch_fid"], rel=1e-5)
    assert figure.better == "lower" and not figure.per_item and figure.resamples == 20
    assert figure.estimate.low < figure.estimate.value < figure.estimate.high


def test_pictures_go_through_the_encoder_and_the_formula_and_a_failed_one_is_black(tmp_path: Path) -> None:
    given = small(tmp_path)
    items, rules = suite.items(given), suite.rules(given)
    assert [i.prompt[0] for i in items] == ["a red cat", "two dogs", "a blue car", "the mat"]
    made = [*outputs()[:3], FAILED]
    judged = suite.judge(items, made, config=given, rules=rules)
    encode = picture_features("embedded")
    shown = [square(pixels(o.images[0]), 64) for o in made[:3]] + [np.zeros((64, 64, 3), np.uint8)]
    real = [square(pixels((tmp_path / "real" / f"{n}.png").read_bytes()), 64) for n in range(9)]
    figure = suite.figures(judged)["coco-fid/fd_embedded_not_comparable"]
    assert figure.estimate.value == pytest.approx(by_scipy(encode(real), encode(shown)), rel=1e-4)
    assert figure.estimate.count == 4
    assert "1 of 4 items have no picture and count as black ones" in judged.notes[0]
    assert "4 generated pictures for 128 features" in judged.notes[1]
    assert rules["features"] == encode.id and rules["reference"].startswith("none: features other")
    assert "not_comparable" in rules["rule"]


def test_the_same_pictures_have_no_distance(tmp_path: Path) -> None:
    given = small(tmp_path)
    items = (suite.items(given) * 3)[:9]
    same = [drawn((tmp_path / "real" / f"{n}.png").read_bytes()) for n in range(9)]
    figure = next(iter(suite.figures(suite.judge(items, same, config=given)).values()))
    assert figure.estimate.value == pytest.approx(0, abs=1e-6)


def test_features_by_path_name_the_figure_and_the_rules(tmp_path: Path) -> None:
    rules, figures = {}, set()
    for kind, path in (
        ("dinov2", tiny_dino(tmp_path / "dino")),
        ("siglip", tiny_siglip(tmp_path / "siglip")),
    ):
        given = small(tmp_path, features__kind=kind, features__path=path)
        judged = suite.judge(suite.items(given), outputs(), config=given)
        figures |= suite.figures(judged).keys()
        rules[kind] = suite.rules(given)
    assert figures == {"coco-fid/fd_dinov2", "coco-fid/fd_siglip"}
    assert rules["dinov2"]["features"].startswith("dino@") and rules["siglip"]["features"].startswith(
        "siglip@"
    )
    again = suite.rules(
        small(tmp_path, features__kind="dinov2", features__path=tmp_path / "dino", features__square=32)
    )
    assert again["features"] == rules["dinov2"]["features"] and again != rules["dinov2"]


def test_statistics_are_read_back_and_those_of_other_features_refused(tmp_path: Path) -> None:
    given, encode = small(tmp_path), picture_features("embedded")
    real = [square(pixels((tmp_path / "real" / f"{n}.png").read_bytes()), 64) for n in range(9)]
    name = suite.statistics_name(encode, 64)
    FeatureStatistics.of(name, encode(real)).save(tmp_path / "stats.npz")
    stored = small(tmp_path, data__references=tmp_path / "stats.npz")
    found = [
        next(iter(suite.figures(suite.judge(suite.items(c), outputs(), config=c)).values())).estimate.value
        for c in (given, stored)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-9) and found[0] > 0
    with pytest.raises(UsageError, match="it holds features .*square-64, not .*square-32"):
        suite.rules(small(tmp_path, data__references=tmp_path / "stats.npz", features__square=32))
    np.savez(tmp_path / "other.npz", mu=np.zeros(3))
    with pytest.raises(UsageError, match="no feature statistics"):
        suite.rules(small(tmp_path, data__references=tmp_path / "other.npz"))


def test_one_caption_of_each_picture_is_drawn(tmp_path: Path) -> None:
    captions = written(
        tmp_path / "captions.json", {"1": ["one", "eins"], "2": ["two", "zwei"], "3": ["three"]}
    )
    drawn_by = {}
    for seed in range(6):
        given = small(tmp_path, data__prompts=None, data__captions=captions, seed=seed)
        drawn_by[seed] = [str(i.prompt[0]) for i in suite.items(given)]
    assert len({json.dumps(d) for d in drawn_by.values()}) > 1
    assert all(
        d[0] in ("one", "eins") and d[1] in ("two", "zwei") and d[2] == "three" for d in drawn_by.values()
    )


def test_what_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"features of inception: .* need a path"):
        suite.rules(small(tmp_path, features__kind="inception"))
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="weights of another network"):
        suite.rules(small(tmp_path, features__kind="inception", features__path=tmp_path / "other.pth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures are there"):
        suite.rules(small(tmp_path, data__references=tmp_path / "empty"))
    with pytest.raises(UsageError, match="data.references is not set"):
        suite.rules(small(tmp_path, data__references=None))
    (tmp_path / "real" / "3.png").write_bytes(b"no picture")
    data = {"data__prompts": tmp_path / "prompts.txt", "data__references": tmp_path / "real"}
    broken = config("coco-fid", features__kind="embedded", features__square=80, **data)
    with pytest.raises(UsageError, match=r"3.png: no picture can be read"):
        suite.rules(broken)


def test_the_wrapper_takes_only_pictures() -> None:
    one = PictureFeatures("x", "x", lambda pictures: torch.full((len(pictures), 2), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        one([np.zeros((2, 2, 3), np.uint8)])
    for wrong in (np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3)), np.zeros((0, 2, 3), np.uint8)):
        with pytest.raises(ValueError, match="must be uint8"):
            one([wrong])
