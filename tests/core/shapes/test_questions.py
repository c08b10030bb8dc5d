"""Questions against two independent answerers: one reads the words, one is written out here."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.shapes import Object, Scene, answer, ask, sample_in_split, sample_scene
from oneflow_core.shapes.lexicon import SHAPE_WORDS
from oneflow_core.shapes.phrases import words_of
from oneflow_core.shapes.questions import KINDS
from oneflow_core.shapes.split import HELDOUT_PAIRS


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([*KINDS, None]))
def test_the_answerer_agrees(seed: int, kind: str | None) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    question = ask(scene, rng, kind)  # type: ignore[arg-type]
    assert answer(question.text, scene) == question.answer
    assert answer(question.text.upper().replace("?", " "), scene) == question.answer
    assert 1 <= len(question.answer.split()) <= 2


SCENE = Scene(
    [
        Object(0, 0, "circle", "red", "small"),
        Object(0, 2, "circle", "blue", "large"),
        Object(1, 1, "ring", "blue", "large"),
        Object(2, 0, "cross", "green", "small"),
    ]
)


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("What colour is the ring?", "blue"),
        ("Which colour is the object in the top left corner?", "red"),
        ("What shape is the green thing?", "cross"),
        ("What colour is the circle?", None),
        ("How many objects are there?", "four"),
        ("How many blue objects are there?", "two"),
        ("How many stars are there?", "zero"),
        ("Is there a red disc?", "yes"),
        ("Is there a black star?", "no"),
        ("Is the ring blue?", "yes"),
        ("Is the ring red?", "no"),
        ("Is the red circle left of the blue circle?", "yes"),
        ("Is the red circle above the blue circle?", "no"),
        ("Is the green cross below the blue ring?", "yes"),
        ("Is the green cross right of the blue ring?", "no"),
        ("Who painted this?", None),
        ("", None),
    ],
)
def test_answers_by_hand(text: str, truth: str | None) -> None:
    assert answer(text, SCENE) == truth


def test_every_kind_is_asked_and_every_answer_occurs() -> None:
    rng = np.random.default_rng(0)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _ in range(3000):
        question = ask(sample_scene(rng), rng)
        answers[question.kind][question.answer] += 1
    assert {kind: len(found) for kind, found in answers.items()} == {
        "colour": 6, "shape": 6, "count": 5, "yes_no": 2, "relation": 2
    }  # fmt: skip
    yes = answers["yes_no"]["yes"] / answers["yes_no"].total()
    assert 0.45 < yes < 0.55


def test_training_questions_never_name_a_heldout_pair() -> None:
    rng = np.random.default_rng(1)
    synonyms = {(noun, colour) for shape, colour in HELDOUT_PAIRS for noun in SHAPE_WORDS[shape]}
    for _ in range(2000):
        words = words_of(ask(sample_in_split(rng, "train"), rng).text)
        joined = " ".join(words)
        assert not any(f"{colour} {noun}" in joined for noun, colour in synonyms), joined
