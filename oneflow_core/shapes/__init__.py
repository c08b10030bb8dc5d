"""The procedural `shapes` corpus: scenes, their pictures, their texts, and exact checks of both."""

from oneflow_core.shapes.checker import Reading, Sighting, examine, read, read_objects
from oneflow_core.shapes.grammar import canonical_caption, caption, parse
from oneflow_core.shapes.phrases import Mention
from oneflow_core.shapes.questions import Question, answer, ask
from oneflow_core.shapes.render import render
from oneflow_core.shapes.scene import COLOURS, GRID, SHAPES, SIZES, Object, Scene, sample_scene
from oneflow_core.shapes.scores import (
    CaptionScore,
    ImageScore,
    score_answer,
    score_caption,
    score_image,
    score_reading,
)
from oneflow_core.shapes.split import SPLITS, Split, sample_in_split, split_of
from oneflow_core.shapes.stories import Story, follows, follows_scenes, parse_change, sample_story

__all__ = [
    "COLOURS",
    "GRID",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "CaptionScore",
    "ImageScore",
    "Mention",
    "Object",
    "Question",
    "Reading",
    "Scene",
    "Sighting",
    "Split",
    "Story",
    "answer",
    "ask",
    "canonical_caption",
    "caption",
    "examine",
    "follows",
    "follows_scenes",
    "parse",
    "parse_change",
    "read",
    "read_objects",
    "render",
    "sample_in_split",
    "sample_scene",
    "sample_story",
    "score_answer",
    "score_caption",
    "score_image",
    "score_reading",
    "split_of",
]
