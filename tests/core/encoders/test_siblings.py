from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.encoders.siblings import cell_labels, sibling, sibling_in_training, truth
from oneflow_core.shapes import COLOURS, SHAPES, SIZES, Scene, sample_in_split, sample_scene, split_of
from oneflow_core.shapes.grammar import caption, parse

SEEDS = settings(max_examples=40, deadline=None)


@SEEDS
@given(st.integers(0, 2**32 - 1))
def test_a_sibling_differs_in_one_thing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    other = sibling(scene, rng)
    before, after = set(scene), set(other)
    gone, come = before - after, after - before
    assert len(other) == len(scene) and 1 <= len(gone) == len(come) <= 2
    if len(gone) == 2:
        assert {o.cell for o in gone} == {o.cell for o in come}
        assert sorted((o.shape, o.colour, o.size) for o in gone) == sorted(
            (o.shape, o.colour, o.size) for o in come
        )
    else:
        (old,), (new,) = gone, come
        changes = [
            old.cell != new.cell,
            old.shape != new.shape,
            old.colour != new.colour,
            old.size != new.size,
        ]
        assert sum(changes) == 1


def test_siblings_in_training_stay_in_training() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert split_of(sibling_in_training(sample_in_split(rng, "train"), rng)) == "train"


def test_truth_is_what_trying_every_matching_says() -> None:
    rng = np.random.default_rng(1)
    scenes: list[Scene] = []
    for _ in range(40):
        scenes += [sample_scene(rng)]
        scenes += [sibling(scenes[-1], rng)]
    texts = [parse(caption(s, rng)) or [] for s in scenes]
    brute = [
        [
            len(text) == len(scene)
            and any(
                all(m.agrees(o) for m, o in zip(text, order, strict=True)) for order in permutations(scene)
            )
            for text in texts
        ]
        for scene in scenes
    ]
    found = truth(texts, scenes)
    assert np.array_equal(found, np.array(brute))
    assert found.diagonal().all() and 0.01 < found.mean() < 0.1
    assert not truth([[]], scenes).any()


def test_cell_labels_name_what_is_where() -> None:
    scene = sample_scene(np.random.default_rng(2), 3)
    (labels,) = cell_labels([scene])
    assert (labels[:, 0] > 0).sum() == 3
    for thing in scene:
        shape, colour, size = labels[thing.row * 3 + thing.col] - 1
        assert (SHAPES[shape], COLOURS[colour], SIZES[size]) == (thing.shape, thing.colour, thing.size)
