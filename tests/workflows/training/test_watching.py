"""What a run shows of itself: settings that mirror the objective's, the sample grid, the coloured trace."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from oneflow_core.objectives import ObjectiveConfig
from oneflow_core.trace import Insertion, Trace
from workflows.training.config import ObjectiveSettings
from workflows.training.loop import Progress
from workflows.training.materials import objective_config
from workflows.training.samples import grid_png, trace_page
from workflows.training.worker import progress_line


def test_the_objectives_settings_are_those_of_the_method() -> None:
    assert objective_config(ObjectiveSettings()) == ObjectiveConfig()
    assert {f.name for f in dataclasses.fields(ObjectiveConfig)} == set(ObjectiveSettings.model_fields)


def test_the_grid_holds_every_image_in_reading_order() -> None:
    images = np.stack([np.full((8, 8, 3), 30 * i, np.uint8) for i in range(5)])
    sheet = np.asarray(Image.open(io.BytesIO(grid_png(images))))
    assert sheet.shape == (3 * 8 + 8, 2 * 8 + 6, 3)
    centres = [sheet[2 + 10 * (i // 2) + 4, 2 + 10 * (i % 2) + 4, 0] for i in range(5)]
    assert centres == [0, 30, 60, 90, 120]


def test_the_trace_colours_pieces_by_time_and_shows_them_as_they_are() -> None:
    pieces = (Insertion(0, 0, "a <b>", 0.0, 1), Insertion(0, 5, " circle", 1.0, 9))
    page = trace_page([("wanted & got", Trace(pieces, (), 9))])
    assert "hsl(240,80%,40%)" in page and "hsl(0,80%,40%)" in page
    assert "a &lt;b&gt;" in page and "wanted &amp; got" in page and "<b>" not in page


def test_the_progress_line_says_where_it_is_and_how_long_it_takes() -> None:
    metrics = {"train/loss": 1.5, "train/text/ce": 1.0, "heldout/loss": 1.7, "speed/tokens_per_s": 1234.0}
    line = progress_line(Progress(40, 100, 0.4, 12.0, 18.0, metrics))
    assert line == "step 40  40% loss 1.500 ce 1.000 heldout 1.700 1,234 tokens/s (12 s, 18 s left)"
