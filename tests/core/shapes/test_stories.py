"""Stories: each text says what changes, and the checker sees whether pictures follow."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.shapes import Mention, Object, Scene, follows, parse_change, render, sample_story, split_of
from oneflow_core.shapes.split import SPLITS
from oneflow_core.shapes.stories import Change, allows, describe_change

SEEDS = st.integers(0, 2**32)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from(SPLITS))
def test_the_pictures_of_a_story_follow_it(seed: int, split: str) -> None:
    story = sample_story(np.random.default_rng(seed), split)  # type: ignore[arg-type]
    assert 2 <= len(story.scenes) == len(story.texts) <= 4
    assert {split_of(scene) for scene in story.scenes} == {split}
    assert follows(story.texts, [render(scene) for scene in story.scenes]) == [True] * len(story.scenes)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_standing_still_does_not_follow(seed: int) -> None:
    story = sample_story(np.random.default_rng(seed), n_images=3)
    first = render(story.scenes[0])
    assert follows(story.texts, [first] * 3) == [True, False, False]
    assert follows(story.texts, [first]) == [True, False, False]
    assert follows(story.texts[:1], [first] * 2) == [True, False]


RING, STAR = Object(0, 0, "ring", "blue", "small"), Object(1, 1, "star", "red", "large")
BEFORE = Scene([RING, STAR])


@pytest.mark.parametrize(
    ("text", "after", "right"),
    [
        ("Add a pink cross in the top right.", [RING, STAR, Object(0, 2, "cross", "pink", "small")], True),
        ("Add a pink cross in the top right.", [RING, STAR, Object(0, 2, "cross", "pink", "large")], True),
        (
            "Add a large pink cross in the top right.",
            [RING, STAR, Object(0, 2, "cross", "pink", "small")],
            False,
        ),
        ("Add a pink cross in the top right.", [RING, Object(0, 2, "cross", "pink", "small")], False),
        ("Remove the red star.", [RING], True),
        ("Take away the red star", [STAR], False),
        ("Make the blue ring crimson.", [replace(RING, colour="red"), STAR], True),
        ("Make the blue ring red.", [replace(RING, colour="red", size="large"), STAR], False),
        ("Move the blue ring to the bottom left corner.", [replace(RING, row=2), STAR], True),
        ("Move the blue ring to the bottom left.", [replace(RING, row=2, colour="red"), STAR], False),
        ("Move the green ring to the bottom left.", [replace(RING, row=2), STAR], False),
        ("Turn the page.", [RING, STAR], False),
    ],
)
def test_changes_by_hand(text: str, after: list[Object], right: bool) -> None:
    images = [render(BEFORE), render(Scene(after))]
    assert follows(["a ring and a star", text], images) == [True, right]


def test_a_picture_that_is_no_scene_is_wrong_and_so_is_the_next() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    texts = ["a blue ring and a red star", "Remove the red star.", "Make the blue ring pink."]
    last = render(Scene([replace(RING, colour="pink")]))
    assert follows(texts, [render(BEFORE), noise, last]) == [True, False, False]


def test_an_ambiguous_or_absent_object_allows_nothing() -> None:
    twin = replace(RING, row=2)
    change = Change("remove", Mention("ring", "blue"))
    assert not allows(change, Scene([RING, twin]), Scene([RING]))
    assert not allows(change, Scene([STAR, replace(STAR, row=2)]), Scene([STAR]))


@pytest.mark.parametrize("text", ["", "Add", "Remove it", "Paint the ring", "Move the ring", "a red circle"])
def test_other_texts_are_no_change(text: str) -> None:
    assert parse_change(text) is None


@settings(deadline=None)
@given(SEEDS)
def test_wordings_are_read_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for change in (
        Change("add", Mention("star", "red", "small", 2, 1)),
        Change("remove", Mention("cross", "black")),
        Change("recolour", Mention("circle", "green"), Mention(colour="yellow")),
        Change("move", Mention("square", "pink"), Mention(row=1, col=0)),
    ):
        assert parse_change(describe_change(change, rng)) == change
