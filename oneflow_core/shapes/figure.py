"""A picture of the corpus for people: `python -m oneflow_core.shapes.figure FILE.png`."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from oneflow_core.shapes.render import IMAGE_SIZE, render
from oneflow_core.shapes.scene import COLOURS, SHAPES, SIZES, Object, Scene, sample_scene

GAP = 4


def sheet(seed: int = 0, columns: int = 6) -> NDArray[np.uint8]:
    """One row that shows every shape, colour and size, and three rows of sampled scenes, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    shown = [
        Scene(
            Object(i // 3, i % 3, shape, COLOURS[(i + k) % len(COLOURS)], SIZES[(i + k) % 2])
            for i in range(3)
        )
        for k, shape in enumerate(SHAPES)
    ]
    tiles = [render(scene) for scene in shown + [sample_scene(rng) for _ in range(3 * columns)]]
    step = IMAGE_SIZE + GAP
    image = np.full((len(tiles) // columns * step + GAP, columns * step + GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = GAP + index // columns * step, GAP + index % columns * step
        image[y : y + IMAGE_SIZE, x : x + IMAGE_SIZE] = tile
    return image


if __name__ == "__main__":
    from PIL import Image

    Image.fromarray(sheet()).resize((824, 552), Image.Resampling.NEAREST).save(sys.argv[1], optimize=True)
