"""Pictures that the embedded encoders learn from: shapes scenes, crops of photographs, random graphics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneflow_core.shapes import Split, render, sample_in_split

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SIZE = 64
"""Side of every picture here, in pixels."""
Pictures = NDArray[np.uint8]

PHOTOGRAPHS = {
    "train": {
        ("skimage", "data/astronaut.png"): 3,
        ("skimage", "data/coffee.png"): 4,
        ("skimage", "data/ihc.png"): 2,
        ("skimage", "data/retina.jpg"): 1,
        ("skimage", "data/hubble_deep_field.jpg"): 1,
        ("skimage", "data/camera.png"): 2,
        ("skimage", "data/brick.png"): 1,
        ("skimage", "data/grass.png"): 1,
        ("skimage", "data/gravel.png"): 1,
        ("skimage", "data/coins.png"): 1,
        ("skimage", "data/moon.png"): 1,
        ("sklearn", "datasets/images/china.jpg"): 4,
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"): 3,
    },
    "heldout": {
        ("skimage", "data/chelsea.png"): 1,
        ("skimage", "data/rocket.jpg"): 1,
        ("sklearn", "datasets/images/flower.jpg"): 1,
    },
}
"""Package and path of each photograph, with the share of crops it gives.

All are public domain or CC0, but china and flower, which are CC BY 2.0.
"""


def shapes(rng: np.random.Generator, count: int, split: Split = "train") -> Pictures:
    """Renderings of scenes of `split`, uint8 [count, 64, 64, 3]."""
    return np.stack([render(sample_in_split(rng, split)) for _ in range(count)])


def photographs(rng: np.random.Generator, count: int, part: str = "train") -> Pictures:
    """Square crops at random scales, flipped and (in training) recoloured, uint8 [count, 64, 64, 3].

    Raises:
        FileNotFoundError: none of the packages that carry the photographs is installed.
    """
    sources = _photographs(part)
    if not sources:
        raise FileNotFoundError(
            "no photographs: install scikit-image, scikit-learn or matplotlib, which carry them in their wheels"
        )
    crops = [_crop(rng, sources[int(rng.integers(len(sources)))]) for _ in range(count)]
    return np.stack([_recolour(rng, c) if part == "train" else c for c in crops])


def graphics(rng: np.random.Generator, count: int) -> Pictures:
    """Flat and shaded overlapping figures on plain or graded grounds, uint8 [count, 64, 64, 3]."""
    return np.stack([_graphic(rng) for _ in range(count)])


def mixture(rng: np.random.Generator, parts: Iterable[tuple[Callable[..., Pictures], int]]) -> Pictures:
    """The given numbers of pictures of each maker, in order."""
    return np.concatenate([make(rng, count) for make, count in parts if count])


def windows(rng: np.random.Generator, pictures: Pictures, side: int) -> Pictures:
    """One window of each picture at a random place, uint8 [N, side, side, 3]."""
    corners = rng.integers(pictures.shape[1] - side + 1, size=(len(pictures), 2))
    return np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(pictures, corners, strict=True)])


@cache
def _photographs(part: str) -> tuple[Image.Image, ...]:
    from PIL import Image

    found: list[Image.Image] = []
    for (package, path), share in PHOTOGRAPHS[part].items():
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if (file := Path(root, path)).is_file():
                found += [Image.open(file).convert("RGB")] * share
    return tuple(found)


def _crop(rng: np.random.Generator, image: Image.Image) -> Pictures:
    from PIL import Image

    shortest = min(image.size)
    side = int(np.exp(rng.uniform(np.log(SIZE), np.log(shortest))))
    left, top = (int(rng.integers(extent - side + 1)) for extent in image.size)
    box = (left, top, left + side, top + side)
    crop = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _recolour(rng: np.random.Generator, pixels: Pictures) -> Pictures:
    values = pixels.astype(np.float32)
    if rng.random() < 0.3:
        values = values[..., rng.permutation(3)]
    if rng.random() < 0.5:
        gain, bias = rng.uniform(0.7, 1.3, 3).astype(np.float32), np.float32(rng.uniform(-30, 30))
        values = (values - 128) * gain + 128 + bias
    if rng.random() < 0.25:
        values = np.rot90(values)
    return values.clip(0, 255).astype(np.uint8)


def _graphic(rng: np.random.Generator) -> Pictures:
    from PIL import Image, ImageDraw

    scale = 2
    top, bottom = _colour(rng), _colour(rng)
    if rng.random() < 0.6:
        bottom = top
    ramp = np.linspace(0, 1, SIZE * scale)[:, None, None]
    ground = np.broadcast_to((1 - ramp) * top + ramp * bottom, (SIZE * scale, SIZE * scale, 3))
    image = Image.fromarray(ground.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 9))):
        _draw_figure(rng, draw, SIZE * scale)
    return np.asarray(image.reduce(scale))


def _draw_figure(rng: np.random.Generator, draw: ImageDraw.ImageDraw, extent: int) -> None:
    colour = tuple(int(c) for c in _colour(rng))
    centre, radius = rng.uniform(0, extent, 2), extent * float(np.exp(rng.uniform(np.log(0.03), np.log(0.4))))
    half = radius * rng.uniform(0.4, 1.0, 2)
    box = (*(centre - half), *(centre + half))
    kind = int(rng.integers(5))
    width = int(rng.integers(2, 9))
    if kind == 0:
        draw.ellipse(box, fill=colour)
    elif kind == 1:
        draw.ellipse(box, outline=colour, width=width)
    elif kind == 2:
        draw.rectangle(box, fill=colour)
    elif kind == 3:
        draw.line([tuple(rng.uniform(0, extent, 2)) for _ in range(int(rng.integers(2, 5)))], colour, width)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        reach = radius * rng.uniform(0.4, 1.0, len(angles))
        corners = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
        draw.polygon([tuple(c) for c in corners], fill=colour)


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    if rng.random() < 0.2:
        return np.full(3, rng.uniform(0, 255))
    if rng.random() < 0.3:
        return rng.choice([0.0, 255.0], 3)
    return rng.uniform(0, 255, 3)
