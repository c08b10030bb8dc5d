"""Captions say what is true, and the parser reads every one of them and nothing else."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.shapes import Mention, Object, Scene, canonical_caption, caption, parse, sample_scene
from oneflow_core.shapes.grammar import describe, mention_of
from oneflow_core.shapes.lexicon import COLOUR_WORDS, POSITION_PHRASES, SHAPE_WORDS, SIZE_WORDS

SALAD = [
    "a",
    "the",
    "red",
    "small",
    "circle",
    "plus",
    "sign",
    "in",
    "at",
    "top",
    "left",
    "is",
    "and",
    "two",
    "that",
]
SEEDS = st.integers(0, 2**32)
MENTIONS = st.builds(
    lambda shape, colour, size, place: Mention(shape, colour, size, *place),
    st.sampled_from([None, *SHAPE_WORDS]),
    st.sampled_from([None, *COLOUR_WORDS]),
    st.sampled_from([None, *SIZE_WORDS]),
    st.sampled_from([(None, None), *POSITION_PHRASES]),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(MENTIONS, min_size=1, max_size=4), SEEDS)
def test_the_parser_inverts_every_wording(mentions: list[Mention], seed: int) -> None:
    assert Counter(parse(describe(mentions, np.random.default_rng(seed))) or ()) == Counter(mentions)


@settings(max_examples=300, deadline=None)
@given(SEEDS)
def test_captions_are_true_of_every_object(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    mentions = parse(caption(scene, rng))
    assert mentions is not None and len(mentions) == len(scene)
    assert all(any(m.agrees(thing) for thing in scene) for m in mentions)
    assert all(m.shape or m.colour for m in mentions)
    assert parse(canonical_caption(scene)) == [mention_of(thing) for thing in scene]


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_case_and_punctuation_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = caption(sample_scene(rng), rng)
    bare = text.replace(",", "").replace(".", "").upper()
    assert parse(bare) == parse(text) == parse(f"  {text.replace(' ', '  ')} !?")


def test_captions_vary_and_mostly_name_colour_and_shape() -> None:
    rng = np.random.default_rng(0)
    scene = sample_scene(rng, 2)
    texts = [caption(scene, rng) for _ in range(400)]
    assert len(set(texts)) > 300
    mentions = [m for text in texts for m in parse(text) or ()]
    assert len(mentions) == 800
    assert 0.9 < np.mean([m.shape is not None and m.colour is not None for m in mentions]) < 1
    assert 0.3 < np.mean([m.size is not None for m in mentions]) < 0.5
    assert {len(text.split()) for text in texts} >= set(range(7, 20))


def test_the_canonical_caption_is_fixed() -> None:
    scene = Scene([Object(2, 2, "ring", "green", "large"), Object(0, 0, "star", "yellow", "small")])
    text = "a small yellow star in the top left and a large green ring in the bottom right"
    assert canonical_caption(scene) == text


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("an emerald disc", [Mention("circle", "green")]),
        ("Two tiny crimson boxes!", [Mention("square", "red", "small")] * 2),
        ("the hoop at the top is golden", [Mention("ring", "yellow", row=0)]),
        ("IN THE CENTER IS A BIG EBONY PLUS SIGN", [Mention("cross", "black", "large", 1, 1)]),
        ("a pink thing on the left and a star", [Mention(None, "pink", col=0), Mention("star")]),
    ],
)
def test_examples(text: str, mentions: list[Mention]) -> None:
    assert parse(text) == mentions


@pytest.mark.parametrize(
    "text",
    ["", " ", "...", "a", "red", "a red", "a red red circle", "a small large circle", "a mauve circle",
     "a red circle in the", "a red circle in", "in the middle", "and a red circle", "a red circle and",
     "a red circlé", "a red circle purple", "a dog", "two", "a red circle that is blue", "a red circle is",
     "the circle is in the middle is", "a red circle " * 60, "\x00", "🔴", "a red circle\x00x"],
)  # fmt: skip
def test_other_texts_are_none(text: str) -> None:
    assert parse(text) is None


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    mentions = parse(text)
    assert mentions is None or len(mentions) > 0


@settings(max_examples=50)
@given(st.lists(st.sampled_from(SALAD)))
def test_word_salad_is_read_in_bounded_time(words: list[str]) -> None:
    begin = time.process_time()
    parse(" ".join(words * 8))
    assert time.process_time() - begin < 1


def test_the_same_seed_gives_the_same_captions() -> None:
    def texts() -> list[str]:
        rng = np.random.default_rng(5)
        return [caption(sample_scene(rng), rng) for _ in range(50)]

    assert texts() == texts()
