"""The procedural `shapes` corpus: scenes, their pictures, their texts, and exact checks of both."""

from oneflow_core.shapes.render import render
from oneflow_core.shapes.scene import COLOURS, GRID, SHAPES, SIZES, Object, Scene, sample_scene
from oneflow_core.shapes.split import SPLITS, Split, sample_in_split, split_of

__all__ = [
    "COLOURS",
    "GRID",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Object",
    "Scene",
    "Split",
    "render",
    "sample_in_split",
    "sample_scene",
    "split_of",
]
