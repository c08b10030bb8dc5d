"""Sizes that images are brought to."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.corpus.encode_config import BucketsConfig, EncodeConfig
from workflows.corpus.frames import Frame, buckets

SIDES = st.integers(1, 20_000)


@given(
    st.integers(1, 24),
    st.sampled_from([8, 16, 64]),
    st.floats(1, 4),
    st.lists(st.tuples(SIDES, SIDES), max_size=20),
)
def test_buckets_hold_what_they_say(
    steps: int, step: int, aspect: float, images: list[tuple[int, int]]
) -> None:
    size = steps * step
    found = buckets(size, BucketsConfig(step=step, max_aspect=aspect))
    assert found[0] == (size, size) and len(set(found)) == len(found)
    for width, height in found:
        assert width % step == height % step == 0
        assert width * height <= size * size < (max(width, height) + step) * min(width, height)
        assert max(width, height) <= aspect * min(width, height)
        assert (height, width) in found
    frame = Frame("x", found)
    for width, height in images:
        away = [abs(math.log(width / height) - math.log(w / h)) for w, h in found]
        assert away[frame.nearest(width, height)] == pytest.approx(min(away), abs=1e-9)


def test_a_list_that_is_known() -> None:
    """Of SDXL's buckets around 1,024 pixels, those within an aspect of 2 that fill it best."""
    sizes = set(buckets(1024, BucketsConfig(step=64, max_aspect=2)))
    assert {
        (1024, 1024),
        (1152, 896),
        (896, 1152),
        (1216, 832),
        (832, 1216),
        (1344, 768),
        (768, 1344),
    } <= sizes


def test_the_word_for_paths_tells_frames_apart() -> None:
    configs = [
        EncodeConfig(),
        EncodeConfig(dtype="bfloat16"),
        EncodeConfig(dtype="float16"),
        EncodeConfig(image_size=128),
        EncodeConfig(buckets=BucketsConfig()),
        EncodeConfig(buckets=BucketsConfig(step=8)),
        EncodeConfig(buckets=BucketsConfig(max_aspect=2.5)),
    ]
    names = [Frame.of(config).name for config in configs]
    assert names[0] == "64px" and names[4] == "64px-b16-a2" and len(set(names)) == len(names)


def test_a_step_that_does_not_divide_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size 64 is no multiple of buckets\.step 24"):
        EncodeConfig(buckets=BucketsConfig(step=24))
