"""Scenes, their pictures, and the split of them."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from oneflow_core.shapes import (
    COLOURS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    render,
    sample_in_split,
    sample_scene,
    split_of,
)
from oneflow_core.shapes.render import BACKGROUND, RGB, cell_origin, coverage
from oneflow_core.shapes.scene import SceneError, single_object_scenes
from oneflow_core.shapes.split import HELDOUT_PAIRS, SPLITS

SEEDS = st.integers(0, 2**32)


@settings(deadline=None)
@given(SEEDS)
def test_a_scene_is_canonical_whatever_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    shuffled = Scene([scene.objects[i] for i in rng.permutation(len(scene))])
    assert shuffled == scene and shuffled.digest == scene.digest
    assert Scene.parse(str(scene)) == scene
    cells = [o.cell for o in scene]
    assert cells == sorted(set(cells))


@pytest.mark.parametrize(
    "text",
    ["", "00:small red", "33:small red circle", "00:small mauve circle", "00:tiny red circle", "0:small red circle",
     "00:small red circle; 00:large blue ring", "x0:small red circle"],
)  # fmt: skip
def test_what_is_no_scene_is_refused(text: str) -> None:
    with pytest.raises(SceneError):
        Scene.parse(text)


def test_counts_follow_the_weights() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount([len(sample_scene(rng)) for _ in range(4000)], minlength=5)[1:] / 4000
    assert np.allclose(counts, (0.6, 0.2, 0.12, 0.08), atol=0.03)


@pytest.mark.parametrize("shape", ["circle", "ring", "square", "cross", "triangle", "star"])
@pytest.mark.parametrize("size", SIZES)
def test_coverage_agrees_with_pillow_at_high_resolution(shape: str, size: str) -> None:
    """Pillow draws the same outline 32 times as large; box averages must agree to a few sub-pixels."""
    zoom, radius = 32, {"small": 6, "large": 9}[size] * 32
    centre = 10 * zoom
    canvas = Image.new("L", (20 * zoom, 20 * zoom), 0)
    draw = ImageDraw.Draw(canvas)

    def box(across: float, down: float, fill: int = 255) -> tuple[list[float], int]:
        return [
            centre - across * radius,
            centre - down * radius,
            centre + across * radius,
            centre + down * radius,
        ], fill

    match shape:
        case "circle":
            draw.ellipse(*box(0.96, 0.96))
        case "ring":
            draw.ellipse(*box(1, 1))
            draw.ellipse(*box(0.56, 0.56, 0))
        case "square":
            draw.rectangle(*box(0.98, 0.98))
        case "cross":
            draw.rectangle(*box(0.3, 1))
            draw.rectangle(*box(1, 0.3))
        case "triangle":
            points = [(0, -0.98), (1, 0.86), (-1, 0.86)]
            draw.polygon([(centre + x * radius, centre + y * radius) for x, y in points], fill=255)
        case "star":
            half = [(0, -1.05), (0.26, -0.36), (1, -0.32), (0.42, 0.14), (0.62, 0.85), (0, 0.45)]
            points = half + [(-x, y) for x, y in half[::-1]]
            draw.polygon([(centre + x * radius, centre + y * radius) for x, y in points], fill=255)
    reference = np.asarray(canvas).reshape(20, zoom, 20, zoom).mean(axis=(1, 3)) / 255
    assert np.abs(coverage(shape, size) / 64 - reference).max() < 0.1


def test_every_template_differs_from_every_other() -> None:
    for a, b in itertools.combinations(itertools.product(SHAPES, SIZES), 2):
        difference = np.abs(coverage(*a).astype(int) - coverage(*b)).sum() / 64
        assert difference > 30, (a, b)


def test_the_picture_shows_each_object_in_its_cell_and_nothing_else() -> None:
    scene = Scene([Object(0, 2, "square", "pink", "large"), Object(2, 1, "circle", "black", "small")])
    image = render(scene)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert tuple(image[12, 52]) == RGB["pink"] and tuple(image[52, 32]) == RGB["black"]
    for thing in scene:
        top, left = cell_origin(*thing.cell)
        image[top : top + 20, left : left + 20] = BACKGROUND
    assert (image == BACKGROUND).all()


def test_pictures_are_the_same_bytes_everywhere() -> None:
    digest = hashlib.sha256()
    for scene in single_object_scenes():
        digest.update(render(scene).tobytes())
    rng = np.random.default_rng(2)
    digest.update("\n".join(str(sample_scene(rng)) for _ in range(100)).encode())
    assert digest.hexdigest() == "87d351ea72581bfc7817249900824d768d95b6467f1fe2a66cd89f76a205aedb"


@pytest.mark.parametrize("scale", [2, 3])
def test_a_larger_picture_shows_the_same_in_more_pixels(scale: int) -> None:
    """Averaged back to 64 pixels it is the small one, but for rounding along outlines."""
    for scene in itertools.islice(single_object_scenes(), 0, None, 37):
        large = render(scene, scale)
        assert large.shape == (64 * scale, 64 * scale, 3)
        back = large.reshape(64, scale, 64, scale, 3).mean((1, 3))
        apart = np.abs(back - render(scene))
        assert apart.mean() < 0.2 and apart.max() < 32
        assert len(np.unique(large)) > 2


def test_the_split_holds_out_combinations() -> None:
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(4000)]
    shares = {name: np.mean([split_of(s) == name for s in scenes]) for name in SPLITS}
    assert 0.6 < shares["train"] < 0.85 and all(0.02 < shares[name] < 0.25 for name in SPLITS[1:])
    train = [s for s in scenes if split_of(s) == "train"]
    seen = {(o.shape, o.colour) for s in train for o in s}
    assert len(HELDOUT_PAIRS) == 3 and len(seen) == 33 and not seen & HELDOUT_PAIRS
    assert {o.shape for s in train for o in s} == set(SHAPES) and {o.colour for s in train for o in s} == set(
        COLOURS
    )
    triples = {(o.shape, o.colour, o.cell) for s in train for o in s}
    for scene in scenes:
        if split_of(scene) == "heldout_triple":
            assert any((o.shape, o.colour, o.cell) not in triples for o in scene)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("n_objects", [None, 1, 4])
def test_sampling_in_a_split(split: str, n_objects: int | None) -> None:
    scene = sample_in_split(np.random.default_rng(3), split, n_objects)  # type: ignore[arg-type]
    assert split_of(scene) == split and (n_objects is None or len(scene) == n_objects)


def test_the_figure_shows_every_shape_colour_and_size() -> None:
    from oneflow_core.shapes.checker import read
    from oneflow_core.shapes.figure import GAP, sheet

    image = sheet()
    tiles = [image[y : y + 64, x : x + 64] for y in range(GAP, 276, 68) for x in range(GAP, 412, 68)]
    scenes = [read(tile) for tile in tiles]
    assert len(scenes) == 24 and None not in scenes
    first = [thing for scene in scenes[:6] for thing in scene or ()]
    assert {o.shape for o in first} == set(SHAPES) and {o.colour for o in first} == set(COLOURS)
    assert {(o.shape, o.size) for o in first} == set(itertools.product(SHAPES, SIZES))
