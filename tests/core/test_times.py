"""The joint laws of text and image clocks: closed forms, simulation, and what must hold of every draw."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from oneflow_core.flows.schedule import build_schedule
from oneflow_core.flows.times import Times, check_law, draw_times
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example
from tests.core.words import TINY, WordTokenizer, image, sample, text

SCHEDULES = ["linear", "cosine", "power:3"]
IMAGE_E = np.array([False, False, True, False, True])
GIVEN_E = np.array([True, False, False, False, False])
PLAIN = TaskMixture(concurrent=1.0, prompt_dropout=0.0, story_prompt=0.0)


def times(law: str, schedule: str, rng: np.random.Generator) -> Times:
    return draw_times(law, build_schedule(schedule), IMAGE_E, GIVEN_E, rng.random, rng)


def draws(law: str, schedule: str, count: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text times, times of the first image (below 0: absent) and whether the second element is there."""
    rng = np.random.default_rng(3)
    made = [times(law, schedule, rng) for _ in range(count)]
    return (
        np.array([min(1.0, t.text) for t in made]),
        np.array([t.image_time_I[0] for t in made]),
        np.array([t.keep_E[1] for t in made]),
    )


def area(schedule: str) -> float:
    kappa = build_schedule(schedule).kappa
    return quad(lambda t: float(kappa(np.array(t))), 0, 1)[0]


def assert_flat(time: np.ndarray, share: float) -> None:
    """Inside (0, 1) there is a part `share` of the draws, and it is uniform."""
    inside = time[(time > 0) & (time < 1)]
    assert len(inside) / len(time) == pytest.approx(share, abs=0.015)
    assert np.histogram(inside, 5, (0, 1))[0] / len(inside) == pytest.approx(np.full(5, 0.2), abs=0.02)


@given(
    st.sampled_from(["independent", "interleaved", "reversed", "fixed", "fixed:0.3"]),
    st.sampled_from(SCHEDULES),
    st.integers(0, 10**6),
)
@settings(deadline=None)
def test_every_draw_keeps_the_order_of_its_law(law: str, schedule: str, seed: int) -> None:
    drawn = times(law, schedule, np.random.default_rng(seed))
    t_text, t_img = min(1.0, drawn.text), drawn.image_time_I
    assert drawn.keep_E[0] and t_text >= 0
    assert (t_img <= 1).all()
    assert ((t_img >= 0) == drawn.keep_E[IMAGE_E]).all()
    if law == "interleaved":
        assert (t_img <= t_text).all()
    else:
        assert drawn.keep_E[IMAGE_E].all()
    if law == "reversed":
        assert (t_img >= t_text).all()
        assert t_img[0] == t_img[1]
    if law.startswith("fixed"):
        assert (t_img == t_text).all()
    if law == "fixed:0.3":
        assert t_text == 0.3


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("law", ["interleaved", "reversed"])
def test_one_clock_leads_and_the_other_follows_it_late(law: str, schedule: str) -> None:
    """The leader: half in flow, half complete. The follower: (1 - A) / 2, 1/2 and A / 2, A the area under kappa."""
    t_text, t_img, kept = draws(law, schedule)
    first, second = (t_text, t_img) if law == "interleaved" else (t_img, t_text)
    a = area(schedule)
    assert_flat(first, 0.5)
    assert (first == 1).mean() == pytest.approx(0.5, abs=0.015)
    assert_flat(second, 0.5)
    assert (second <= 0).mean() == pytest.approx((1 - a) / 2, abs=0.015)
    assert (second == 1).mean() == pytest.approx(a / 2, abs=0.015)
    assert kept.mean() == pytest.approx((a + 1) / 2 if law == "interleaved" else a, abs=0.015)


def test_reversed_times_mirror_interleaved_ones() -> None:
    """Their joint laws are the same with text and image exchanged, held on a grid of the joint cdf."""
    text_a, image_a, _ = draws("interleaved", "power:3")
    text_b, image_b, _ = draws("reversed", "power:3")
    for x in (0.0, 0.3, 0.6, 0.9):
        for y in (0.2, 0.5, 0.8, 1.0):
            ours = ((image_a <= x) & (text_a <= y)).mean()
            assert ours == pytest.approx(((text_b <= x) & (image_b <= y)).mean(), abs=0.015)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("law", ["independent", "fixed"])
def test_a_uniform_text_clock_keeps_the_area_under_kappa(law: str, schedule: str) -> None:
    t_text, t_img, kept = draws(law, schedule)
    assert_flat(t_text, 1.0)
    assert kept.mean() == pytest.approx(area(schedule), abs=0.015)
    together = np.corrcoef(t_text, t_img)[0, 1]
    assert together == pytest.approx(1.0 if law == "fixed" else 0.0, abs=0.025)


def test_a_fixed_time_keeps_kappa_of_it() -> None:
    _, t_img, kept = draws("fixed:0.5", "power:3", 4000)
    assert set(t_img) == {0.5}
    assert kept.mean() == pytest.approx(0.125, abs=0.02)


@pytest.mark.parametrize("law", ["sorted", "fixed:", "fixed:1.5", "reversed:0.2", "fixed:x"])
def test_unknown_laws_are_refused_by_name(law: str) -> None:
    with pytest.raises(ValueError, match="are none of: independent"):
        check_law(law)
    with pytest.raises(ValueError, match="are none of"):
        TaskMixture(concurrent_times=law)


def corrupted(seed: int, *segments: object, **mixture: str) -> Example:
    made = OneFlowObjective(ObjectiveConfig(mixture=replace(PLAIN, **mixture)), TINY, WordTokenizer())
    return made.corrupt(sample(*segments), np.random.default_rng(seed))  # type: ignore[arg-type]


def test_pairs_and_stories_take_the_law_of_their_config() -> None:
    pair, story = (text([5, 6, 7]), image()), (text([5]), image(), text([6]), image())
    absent = 0
    for seed in range(60):
        e = corrupted(seed, *pair, concurrent_times="reversed")
        assert len(e.time_N) == 4 and (e.time_N >= min(1.0, e.clock_C[0]) - 1e-6).all()
        e = corrupted(seed, *pair, concurrent_times="interleaved")
        absent += len(e.time_N) == 0
        assert (e.time_N <= min(1.0, e.clock_C[0]) + 1e-6).all()
        e = corrupted(seed, *story, interleaved_times="fixed")
        assert len(e.time_N) == 8 and e.time_N == pytest.approx(np.full(8, e.clock_C[0]), abs=1e-6)
    assert absent == pytest.approx(15, abs=9)


def test_a_given_text_leaves_its_image_to_free_times() -> None:
    for law in ("interleaved", "reversed", "fixed"):
        mixture = {"concurrent_times": law, "concurrent": 0.0, "text_to_image": 1.0}
        e = corrupted(0, text([5, 6]), image(), **mixture)  # type: ignore[arg-type]
        assert (e.clock_C == 1).all() and len(e.count_S) == 0 and e.flow_N.all()


def test_golden_corruption() -> None:
    """What the default laws make of a seed; a change of it changes what every run reads."""
    digest = hashlib.sha256()
    documents = [(text([2, 3, 4, 5]), image(), text([6, 7, 8, 9]), image()), (image(), text([5, 6, 7]))]
    for number in range(40):
        made = OneFlowObjective(ObjectiveConfig(mixture=TaskMixture(concurrent=0.5)), TINY, WordTokenizer())
        e = made.corrupt(sample(*documents[number % 2]), np.random.default_rng(number))
        times = (np.round(x, 5).tolist() for x in (e.time_N.astype(float), e.clock_C))
        digest.update(repr((e.layout.token_T.tolist(), e.pair_token_K.tolist(), *times)).encode())
    assert digest.hexdigest()[:16] == "1dce1972cf39bdb1"
