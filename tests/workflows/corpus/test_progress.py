"""What long work tells."""

import re

import pytest

from workflows.corpus import progress
from workflows.corpus.progress import Progress


def test_lines_tell_rate_refusals_and_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 10.0, 10.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock, 40.0))
    told = Progress("encode", 8_000, "images")
    told.add(1_990, refused=10)
    told.add(6_000)
    told.finish("fine")
    first, second, third, last = capsys.readouterr().err.splitlines()
    assert first == "encode: 8,000 images to do"
    assert second == "encode: 1,990 of 8,000 images, 10 refused, 199/s, 0:00:30 left"
    assert re.fullmatch(r"encode: 7,990 of 8,000 images, 10 refused, 200/s, 0:00:00 left", third)
    assert last == "encode: 7,990 images, 10 refused, 200/s in 40.0 s; fine"
