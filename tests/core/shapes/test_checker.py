"""The checker reads every rendering, also when perturbed, and rejects what is no scene."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from oneflow_core.shapes import Object, Scene, read, read_objects, render, sample_scene
from oneflow_core.shapes.render import BACKGROUND, cell_origin
from oneflow_core.shapes.scene import single_object_scenes

Picture = NDArray[np.uint8]
PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos"


def _many(number: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, 2 + i % 3) for i in range(number)]


def _noise(image: Picture) -> Picture:
    noisy = image + np.random.default_rng(int(image.sum())).normal(0, 12, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _jpeg(image: Picture) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=60)
    return np.asarray(Image.open(buffer))


def _blur(image: Picture) -> Picture:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1)))


def _shift(image: Picture) -> Picture:
    return np.roll(image, (1, -1), (0, 1))


def _paler(image: Picture) -> Picture:
    mixed: Picture = (image * 0.85 + 0.15 * np.array(BACKGROUND)).astype(np.uint8)
    return mixed


def test_every_single_object_is_read() -> None:
    for scene in single_object_scenes():
        assert read(render(scene)) == scene


@pytest.mark.parametrize("perturb", [_noise, _jpeg, _blur, _shift, _paler])
def test_perturbed_objects_are_read(perturb: Callable[[Picture], Picture]) -> None:
    """Every fifth: each shape, colour, size and cell comes up, and the whole suite stays quick."""
    for scene in list(single_object_scenes())[::5]:
        assert read(perturb(render(scene))) == scene


@pytest.mark.parametrize("perturb", [np.copy, _noise, _jpeg, _blur, _shift, _paler])
def test_scenes_of_many_objects_are_read(perturb: Callable[[Picture], Picture]) -> None:
    for scene in _many(100):
        assert read(perturb(render(scene))) == scene


def test_poor_pictures_still_give_the_best_guess() -> None:
    rng = np.random.default_rng(1)
    for scene in _many(40, 1):
        image = np.clip(render(scene) + rng.normal(0, 40, (64, 64, 3)), 0, 255).astype(np.uint8)
        assert read(image) is None
        assert [s.thing for s in read_objects(image)] == list(scene)
        assert all(s.unexplained > 0.02 for s in read_objects(image))


@pytest.mark.parametrize("grey", [0, 128, 240, 255])
def test_blank_pictures_are_rejected(grey: int) -> None:
    assert read(np.full((64, 64, 3), grey, np.uint8)) is None


def test_the_empty_grid_is_rejected() -> None:
    empty = np.empty((64, 64, 3), np.uint8)
    empty[:] = BACKGROUND
    assert read(empty) is None and read_objects(empty) == []


def test_noise_is_rejected() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        assert read(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)) is None
        grains = rng.normal(0, rng.uniform(5, 80), (64, 64, 3)) + BACKGROUND
        assert read(np.clip(grains, 0, 255).astype(np.uint8)) is None


@pytest.mark.parametrize("cut", [np.s_[:10, :], np.s_[10:, :], np.s_[:, :10], np.s_[:, 10:]])
def test_half_drawn_objects_are_rejected(cut: tuple[slice, slice]) -> None:
    for scene in [*list(single_object_scenes())[::5], *_many(60, 3)]:
        image = render(scene)
        for thing in scene:
            top, left = cell_origin(*thing.cell)
            image[top : top + 20, left : left + 20][cut] = BACKGROUND
        assert read(image) is None, scene


def test_more_objects_than_a_scene_holds_are_rejected() -> None:
    five = np.minimum(render(_on([0, 1, 2])), render(_on([6, 8])))
    assert len(read_objects(five)) == 5 and read(five) is None


def _on(cells: list[int]) -> Scene:
    return Scene(Object(*divmod(cell, 3), "square", "red", "small") for cell in cells)


def test_photographs_are_rejected() -> None:
    files = [f for f in sorted(PHOTOS.glob("*")) if f.suffix.lower() in {".jpg", ".jpeg", ".png"}]
    if not files:
        pytest.skip(f"no photographs at {PHOTOS}")
    rng = np.random.default_rng(4)
    for file in files:
        photo = Image.open(file).convert("RGB")
        for _ in range(40):
            side = int(rng.integers(32, min(photo.size) + 1))
            x, y = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
            crop = photo.resize((64, 64), box=(x, y, x + side, y + side))
            assert read(np.asarray(crop)) is None


@pytest.mark.parametrize("image", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_another_shape_or_type_is_an_error(image: Picture) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[64, 64, 3\]"):
        read(image)


def test_reconstructions_of_the_embedded_codec_are_read() -> None:
    """What a perfect generator would show: the codec's own blur must not cost a score."""
    from oneflow_core.encoders.latent import LatentCodec

    codec = LatentCodec.from_pretrained("embedded")
    scenes = [*list(single_object_scenes())[::31], *_many(11, 5)]
    decoded = codec.decode(codec.encode(np.stack([render(scene) for scene in scenes])))
    assert [read(image) for image in decoded] == scenes
