"""The shapes suite: held-out items only, exact scores, and controls that a blind model cannot beat."""

import io

import numpy as np
import pytest
from PIL import Image

from oneflow_core.shapes import Object, Scene, parse, read, split_of
from workflows.evaluation.config import EvaluateConfig, ItemsConfig
from workflows.evaluation.figures import Figure
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites import shapes

from .oracle import png, scene_for

ITEMS = ItemsConfig(
    t2i_single=12,
    t2i_multi=8,
    caption_single=12,
    caption_multi=8,
    vqa=20,
    story=6,
    combinations=0.5,
    no_prompt=4,
)
CONFIG = EvaluateConfig(items=ITEMS)


def test_items_are_held_out_and_the_same_for_everybody() -> None:
    items = shapes.items(CONFIG)
    assert items == shapes.items(CONFIG)
    assert len({item.id for item in items}) == len(items) == 66 + 2 * 33 + 5 * 4
    assert len({item.seed for item in items if not item.control}) > 0.99 * 132
    other = shapes.items(EvaluateConfig(seed=1, items=ITEMS))
    assert [i.id for i in other] == [i.id for i in items] and {i.prompt for i in other} != {
        i.prompt for i in items
    }
    for item in items:
        shown = [read(np.asarray(Image.open(io.BytesIO(p)))) for p in item.prompt if isinstance(p, bytes)]
        if item.task.startswith("t2i/single"):
            (mention,) = parse(item.truth) or []
            shown = [Scene([Object(**mention.said())])]  # type: ignore[arg-type]
        for scene in shown:
            assert scene is not None and split_of(scene) == item.split


def test_prompts_are_taken_away_from_the_controls() -> None:
    blind = [item for item in shapes.items(CONFIG) if item.control]
    assert {item.control for item in blind} == {"no_prompt"}
    assert all(not any(isinstance(p, bytes) for p in item.prompt) for item in blind)
    assert all(item.prompt == () for item in blind if item.task != "vqa")


def _figures(parts_of: dict[str, tuple[str | bytes, ...]], *items: Item) -> dict[str, Figure]:
    outputs = [Output(parts_of[item.id]) for item in items]
    return shapes.figures(shapes.judge(items, outputs))


def _value(figure: Figure) -> float:
    return figure.estimate.value


def test_figures_by_hand() -> None:
    scene = Scene([Object(0, 0, "circle", "red", "small"), Object(2, 2, "ring", "blue", "large")])
    one = Item("1", "t2i/single", "heldout_random", ("a small red circle",), "image", 0, "a small red circle")
    two = Item(
        "2",
        "t2i/multi",
        "heldout_random",
        ("a red circle and a blue star",),
        "image",
        0,
        "a red circle and a blue star",
    )
    three = Item(
        "3", "caption/multi", "heldout_random", (png(scene),), "text", 0, str(scene), expected_words=10.0
    )
    four = Item(
        "4", "vqa", "heldout_pair", (png(scene), "?"), "text", 0, "red", detail="colour", expected_words=1.0
    )
    five = Item("5", "story", "heldout_random", ("a red circle and a blue ring",), "document", 0, "")
    after = Scene(scene.objects[:1])
    made: dict[str, tuple[str | bytes, ...]] = {
        "1": (png(Scene([Object(1, 1, "square", "red", "small")])),),
        "2": (png(scene),),
        "3": ("a red circle ", "and a blue ring in the bottom right"),
        "4": ("Red.",),
        "5": (png(scene), "Remove the blue ring.", png(scene), "Remove the blue ring.", png(after)),
    }
    found = {name: _value(figure) for name, figure in _figures(made, one, two, three, four, five).items()}
    expected = {
        "t2i/single/colour": 1, "t2i/single/shape": 0, "t2i/single/size": 1, "t2i/single/count": 1,
        "t2i/single/exact": 0, "t2i/multi/colour": 1, "t2i/multi/shape": 0.5, "t2i/multi/exact": 0, "t2i/exact": 0,
        "caption/multi/exact": 1, "caption/exact": 1, "text/length_ratio": 1.1,
        "vqa/accuracy/heldout_pair": 1, "vqa/colour/accuracy/heldout_pair": 1, "vqa/length_ratio/heldout_pair": 1,
        "story/images_exact": 2 / 3, "story/exact": 0, "story/images": 3,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert not any(name.startswith("caption/single") or "heldout_triple" in name for name in found)


def test_a_story_that_stops_early_is_not_whole() -> None:
    scene = Scene([Object(0, 0, "circle", "red", "small")])
    item = Item("1", "story", "heldout_random", ("a red circle",), "document", 0, "")
    for parts, share in (
        ((png(scene),), 0.5),
        ((), 0.0),
        ((png(scene), "Add a ring."), 0.5),
        (("and a ring",), 0.0),
    ):
        found = _figures({"1": parts}, item)  # type: ignore[dict-item]
        assert _value(found["story/images_exact"]) == share and _value(found["story/exact"]) == 0


def test_failures_and_rubbish_count_as_wrong() -> None:
    items = [item for item in shapes.items(CONFIG) if not item.control]
    large = io.BytesIO()
    Image.new("RGB", (128, 128)).save(large, "PNG")
    for output in (
        Output(error="HTTP 500"),
        Output((b"no png",)),
        Output((large.getvalue(),)),
        Output(("a dog",)),
    ):
        found = shapes.figures(shapes.judge(items, [output] * len(items)))
        scores = {
            name: _value(f)
            for name, f in found.items()
            if "length" not in name and "story/images" not in name
        }
        assert scores and set(scores.values()) == {0.0}


def test_controls_are_near_chance_where_the_model_is_exact() -> None:
    items = [
        i for i in shapes.items(EvaluateConfig(items=ItemsConfig(t2i_single=80))) if i.task == "t2i/single"
    ]
    outputs = [Output(() if i.control else (png(scene_for(parse(i.truth) or [])),)) for i in items]
    found = shapes.figures(shapes.judge(items, outputs))
    for name in ("colour", "shape"):
        figure = found[f"t2i/single/{name}"]
        assert figure.estimate.value == 1 and figure.estimate.count == 80
        assert 0.05 < figure.controls["chance"] < 0.3 and 0.05 < figure.controls["shuffled"] < 0.35
        assert figure.controls["no_prompt"] == 0
    assert found["t2i/single/exact/heldout_pair"].controls["chance"] == 0


def test_outputs_judged_as_they_came_give_the_same_figures() -> None:
    items = shapes.items(CONFIG)
    rng, outputs = np.random.default_rng(0), []
    for item in items:
        drawn = png(scene_for(parse(item.truth) or [])) if item.target == "image" else item.truth
        outputs.append(
            Output((drawn,) if rng.random() < 0.7 else (), "" if rng.random() < 0.9 else "HTTP 500")
        )
    some = {i.id: shapes.judge_one(i, o) for i, o in zip(items, outputs, strict=True) if rng.random() < 0.5}
    late, early = (shapes.figures(shapes.judge(items, outputs, judged=given)) for given in (None, some))
    assert {n: f.to_json() for n, f in late.items()} == {n: f.to_json() for n, f in early.items()}
