"""Scores of pictures, captions and answers."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.shapes import (
    Mention,
    Object,
    Scene,
    canonical_caption,
    caption,
    parse,
    render,
    sample_scene,
    score_answer,
    score_caption,
    score_image,
)
from oneflow_core.shapes.grammar import describe

RED_CIRCLE = Object(0, 0, "circle", "red", "small")
BLUE_RING = Object(2, 1, "ring", "blue", "large")
PAIR = Scene([RED_CIRCLE, BLUE_RING])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_the_true_scene_scores_fully(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    mentions = parse(caption(scene, rng)) or []
    score = score_image(mentions, render(scene))
    assert score.exact and score.count and score.accepted
    assert {score.colour, score.shape, score.size, score.position} <= {1.0, None}
    caption_score = score_caption(canonical_caption(scene), scene)
    assert caption_score.exact and caption_score.recall == caption_score.precision == 1


@pytest.mark.parametrize(
    ("mention", "colour", "shape", "size", "position"),
    [
        (Mention("circle", "red"), 1, 1, None, None),
        (Mention("circle", "blue", "small"), 0, 1, 1, None),
        (Mention("star", "red", "large", 0, 0), 1, 0, 0, 1),
        (Mention("circle", "red", col=2), 1, 1, None, 0),
        (Mention(colour="red", row=0), 1, None, None, 1),
    ],
)
def test_attributes_are_scored_apart(
    mention: Mention, colour: float, shape: float, size: float | None, position: float | None
) -> None:
    score = score_image([mention], render(Scene([RED_CIRCLE])))
    assert (score.colour, score.shape, score.size, score.position) == (colour, shape, size, position)
    assert score.exact == (0 not in (colour, shape, size, position))


def test_extra_and_missing_objects_are_wrong() -> None:
    extra = score_image([Mention("circle", "red")], render(PAIR))
    assert not extra.count and not extra.exact
    missing = score_image([Mention("circle", "red"), Mention("star", "pink")], render(Scene([RED_CIRCLE])))
    assert not missing.exact and missing.colour == missing.shape == 0.5


def test_a_picture_full_of_everything_earns_no_more_than_chance() -> None:
    """Only the most salient object counts for one mention, however many others would fit."""
    scene = Scene([Object(0, 0, "square", "black", "large"), Object(2, 1, "star", "pink", "small")])
    score = score_image([Mention("star", "pink")], render(scene))
    assert score.colour == score.shape == 0


def test_an_empty_picture_scores_nothing() -> None:
    score = score_image([Mention("star", "pink")], np.full((64, 64, 3), 255, np.uint8))
    assert score.colour == score.shape == 0 and not score.count and not score.accepted


@pytest.mark.parametrize(
    ("text", "exact", "recall", "precision"),
    [
        ("a red circle and a blue ring", True, 1, 1),
        ("a blue ring and a red circle", True, 1, 1),
        ("a red circle in the top left and a blue ring", True, 1, 1),
        ("a red circle in the middle and a blue ring", False, 0.5, 0.5),
        ("a red circle", False, 0.5, 1),
        ("a red circle, a blue ring and a green star", False, 1, 2 / 3),
        ("two red circles and a blue ring", False, 1, 2 / 3),
        ("a red circle and a ring", False, 0.5, 0.5),
        ("a blue circle and a red ring", False, 0, 0),
        ("a dog on a lawn", False, 0, 0),
    ],
)
def test_captions(text: str, exact: bool, recall: float, precision: float) -> None:
    score = score_caption(text, PAIR)
    assert (score.exact, score.recall, score.precision) == (exact, recall, precision)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_matching_agrees_with_trying_every_assignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    things = sample_scene(rng)
    scene = Scene(Object(o.row, o.col, "star", ("red", "blue")[i % 2], o.size) for i, o in enumerate(things))
    mentions = [
        Mention("star", ("red", "blue")[rng.integers(2)], None, *((None, None), (0, None))[rng.integers(2)])
        for _ in range(int(rng.integers(1, 5)))
    ]
    slots = [*scene, *[None] * len(mentions)]
    best = max(
        sum(o is not None and m.agrees(o) for m, o in zip(mentions, order, strict=False))
        for order in permutations(slots, len(mentions))
    )
    assert score_caption(describe(mentions, rng), scene).recall == best / len(scene)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [("Red.", "red", True), ("2", "two", True), ("a ring", "ring", True), ("yes", "no", False), ("", "no", False),
     ("red blue", "red", False), ("two", "three", False)],
)  # fmt: skip
def test_answers(answer: str, truth: str, right: bool) -> None:
    assert score_answer(answer, truth) == right
