"""The sampler driven by an oracle that knows the answer, and by a random network for what must never happen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oneflow_core.flows.image import unpatchify, velocity
from oneflow_core.flows.schedule import build_schedule
from oneflow_core.model import ModelInputs, ModelOutputs
from oneflow_core.sampling import InsertionSampler, Request, SamplerConfig
from oneflow_core.sampling.forward import build_batch
from oneflow_core.sampling.state import State
from tests.core.networks import GRID, Lockstep, mixed_requests, random_model
from tests.core.words import TINY


@dataclass
class Answer:
    """Distinct tokens; 1 stands for an image of the constant `value`."""

    tokens: list[int]
    value: float = 0.5


class Oracle(nn.Module):
    """Knows the only document there is, so its counts, tokens and images are exact (METHOD section 9)."""

    def __init__(self, answer: Answer, silent: bool = False, latent_scale: float = 1.0) -> None:
        super().__init__()
        self.config, self.answer, self.silent = replace(TINY, latent_scale=latent_scale), answer, silent
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: ModelInputs) -> ModelOutputs:
        slots = inputs.slot_S.tolist()
        bags = [self._missing(inputs, s) for s in slots]
        count = torch.tensor([float(len(b)) for b in bags])
        logits = torch.full((len(bags), TINY.vocab_size), -1e9)
        for i, bag in enumerate(bags):
            logits[i, bag or [2]] = 0.0
        pi = torch.where((count == 0) | self.silent, 50.0, -50.0)
        image = torch.full_like(inputs.noisy_ND, self.answer.value)
        return ModelOutputs(pi, count.clamp(min=1), logits, None, image)

    def _missing(self, inputs: ModelInputs, slot: int) -> list[int]:
        document = inputs.attention.document_T
        mine = (document == document[slot]).nonzero()[:, 0].tolist()
        anchors = [p for p in mine if p not in set(inputs.patch_N.tolist())]
        here = anchors.index(slot)
        order = self.answer.tokens
        left = order.index(int(inputs.token_T[slot])) if int(inputs.token_T[slot]) in order else -1
        following = [int(inputs.token_T[p]) for p in anchors[here + 1 :]]
        right = order.index(following[0]) if following else len(order)
        return order[left + 1 : right]


def run(model: nn.Module, requests: list[Request], **config: float | str) -> list:
    sampler = InsertionSampler(model, bos_id=0, image_id=1)  # type: ignore[arg-type]
    return sampler.generate(requests, SamplerConfig(**config))  # type: ignore[arg-type]


def document(seed: int, prompt: tuple[int, ...] = ()) -> Request:
    return Request((prompt,) if prompt else (), "document", GRID, seed)


@pytest.mark.parametrize("steps", [3, 8, 25])
def test_an_oracle_writes_and_draws_its_document(steps: int) -> None:
    answer = Answer([5, 6, 7, 1, 8, 9])
    for seed in range(10):
        (out,) = run(Oracle(answer), [document(seed)], steps=steps, flush=10, image_guidance=1.0)
        before, latent, after = out.segments
        assert before == (5, 6, 7)
        assert after == (8, 9)
        assert latent.shape == (4, 4, 4)
        assert latent == pytest.approx(0.5, abs=1e-4)
        assert out.trace.token == (5, 6, 7, 1, 8, 9)
        assert out.trace.passes <= 2 * steps + 10
        assert all(0 <= t <= 1 for t in out.trace.time)


def test_latents_come_back_in_the_scale_of_the_codec() -> None:
    oracle = Oracle(Answer([1]), latent_scale=3.0)
    (out,) = run(oracle, [document(0)], steps=4, flush=4, image_guidance=1.0)
    assert out.segments[0] == pytest.approx(1.5, abs=1e-3)


def test_insertion_times_are_uniform_under_the_linear_schedule() -> None:
    answer = Answer(list(range(2, 8)))
    outs = run(Oracle(answer), [document(s) for s in range(300)], steps=200, flush=0)
    times = np.concatenate([o.trace.time for o in outs])
    assert np.histogram(times, bins=4, range=(0, 1))[0] / len(times) == pytest.approx(
        np.full(4, 0.25), abs=0.035
    )


def test_insertion_times_follow_the_models_schedule() -> None:
    """Under kappa = t^2 a quarter of the tokens arrives in the first half, whatever the steps."""
    answer = Answer(list(range(2, 8)))
    for grid in ("linear", "power:2"):
        outs = run(
            Oracle(answer),
            [document(s) for s in range(300)],
            steps=200,
            flush=0,
            schedule="power:2",
            step_schedule=grid,
        )
        times = np.concatenate([o.trace.time for o in outs])
        assert (times < 0.5).mean() == pytest.approx(0.25, abs=0.035)


def test_pi_of_one_inserts_nothing() -> None:
    (out,) = run(Oracle(Answer([5, 6]), silent=True), [document(0)], steps=5)
    assert out.segments == ()


def test_text_to_image_leaves_text_alone_and_makes_one_image() -> None:
    request = Request(((5, 6),), "image", GRID, 3)
    (out,) = run(Oracle(Answer([5, 6, 1], value=-1.25)), [request], steps=12, image_guidance=3.0)
    assert [type(s) for s in out.segments] == [np.ndarray]
    assert out.segments[0] == pytest.approx(-1.25, abs=1e-4)
    assert out.trace.passes == 12


@pytest.mark.parametrize("text_time", [False, True])
@pytest.mark.parametrize("image_weak", ["unprompted", "entropy"])
@pytest.mark.parametrize("text_guidance", [0.0, 1.0])
def test_a_document_does_not_depend_on_its_batch(
    text_guidance: float, image_weak: str, text_time: bool
) -> None:
    weak = dict(image_guidance=2.0, image_weak=image_weak, text_guidance=text_guidance)
    options = dict(steps=6, flush=2, max_tokens=40, **weak)
    together = run(random_model(text_time=text_time), mixed_requests(), **options)
    for request, expected in zip(mixed_requests(), together, strict=True):
        (alone,) = run(random_model(text_time=text_time), [request], **options)
        assert alone.trace.token == expected.trace.token
        for a, b in zip(alone.segments, expected.segments, strict=True):
            if isinstance(a, tuple):
                assert a == b
            else:
                assert np.allclose(a, b, atol=1e-3)


def test_caps_hold_and_specials_stay_out_of_texts() -> None:
    model = random_model()
    with torch.no_grad():
        model.heads.count.bias.copy_(torch.tensor([-9.0, 9.0]))
        model.heads.tokens.weight[1] += 3
    outs = run(model, [document(s) for s in range(6)], steps=10, flush=5, max_tokens=15, max_images=2)
    for out in outs:
        assert len(out.trace.token) == 15
        assert out.trace.token.count(1) <= 2
        assert out.trace.token.count(0) == 0
    for out in run(model, [Request((), "text", GRID, s) for s in range(3)], steps=10, max_tokens=15):
        assert 1 not in out.trace.token


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    a, b, c = (run(random_model(), [document(s)], steps=8)[0].trace for s in (1, 1, 2))
    assert a == b
    assert a.token != c.token


def test_temperature_zero_and_small_top_p_take_the_likeliest() -> None:
    from oneflow_core.sampling.draw import draw

    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3]])).repeat(4000, 1)
    draws = np.random.default_rng(0).random(4000)
    assert set(draw(logits, draws, SamplerConfig(temperature=0))) == {1}
    assert set(draw(logits, draws, SamplerConfig(top_p=0.5))) == {1}
    shares = np.bincount(draw(logits, draws, SamplerConfig()), minlength=3) / 4000
    assert shares == pytest.approx([0.1, 0.6, 0.3], abs=0.03)
    nucleus = np.bincount(draw(logits, draws, SamplerConfig(top_p=0.8)), minlength=3) / 4000
    assert nucleus == pytest.approx([0, 2 / 3, 1 / 3], abs=0.03)


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"entropy_sharpness": 1.5}, {"top_p": 0.0}, {"temperature": -1.0}, {"max_tokens": 0}],
)
def test_absurd_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        SamplerConfig(**bad)


def test_the_observer_sees_every_pass() -> None:
    seen: list[Tensor | float] = []
    sampler = InsertionSampler(Oracle(Answer([5, 1, 6])), bos_id=0, image_id=1)  # type: ignore[arg-type]
    (out,) = sampler.generate([document(0)], SamplerConfig(steps=5), lambda s: seen.append(len(s.elements)))
    assert 5 <= len(seen) <= 10 + SamplerConfig().flush
    assert out.trace.passes <= len(seen)
    assert seen == sorted(seen)


@pytest.mark.parametrize("text_guidance", [0.0, 1.0])
def test_a_document_that_did_not_change_is_not_shown_again(text_guidance: float) -> None:
    """Fewer passes than steps, and the same documents as when every step asks the network anew."""
    config = SamplerConfig(steps=40, flush=2, max_tokens=20, text_guidance=text_guidance)
    kept, anew = (
        sampler(random_model(), bos_id=0, image_id=1).generate(mixed_requests(), config)
        for sampler in (InsertionSampler, Lockstep)
    )
    for a, b in zip(kept, anew, strict=True):
        assert a.trace.token == b.trace.token
        assert a.trace.time == b.trace.time
        for left, right in zip(a.segments, b.segments, strict=True):
            assert np.allclose(np.asarray(left), np.asarray(right), atol=1e-3)
    assert kept[1].trace.passes < anew[1].trace.passes
    assert kept[0].trace.passes == anew[0].trace.passes == 40


@pytest.mark.parametrize("grid", ["power:2", "power:0.5", "cosine"])
def test_other_step_schedules_land_on_the_data_in_as_many_passes(grid: str) -> None:
    request = Request(((5, 6),), "image", GRID, 3)
    answer = Answer([5, 6, 1], value=-1.25)
    (out,) = run(Oracle(answer), [request], steps=9, step_schedule=grid, image_guidance=1.0)
    assert out.segments[0] == pytest.approx(-1.25, abs=1e-4)
    assert out.trace.passes == 9
    times: list[float] = []
    sampler = InsertionSampler(Oracle(answer), bos_id=0, image_id=1)  # type: ignore[arg-type]
    config = SamplerConfig(steps=9, step_schedule=grid, image_guidance=1.0)
    sampler.generate([request], config, lambda s: times.append(s.image_time[0]))
    wanted = build_schedule(grid).kappa(np.arange(1, 10) / 9)
    assert times == pytest.approx(wanted.tolist(), abs=1e-5)


def test_adaptive_steps_lose_less_of_a_long_text_in_bounded_passes() -> None:
    answer = Answer([t for t in range(2, TINY.vocab_size) if t != 1])
    left = {}
    for adaptive in (False, True):
        requests = [document(seed) for seed in range(20)]
        outs = run(Oracle(answer), requests, steps=5, flush=0, adaptive=adaptive)
        left[adaptive] = 1 - np.mean([len(o.trace.token) for o in outs]) / len(answer.tokens)
        assert all(o.trace.passes <= (20 if adaptive else 5) for o in outs)
    assert left[True] < 0.5 * left[False]


def test_entropy_guidance_steps_away_from_a_more_even_attention() -> None:
    model, request = random_model(), Request(((5, 6, 7),), "image", GRID, 1)
    config = SamplerConfig(steps=1, image_guidance=2.5, image_weak="entropy", entropy_sharpness=0.3)
    (made,) = InsertionSampler(model, bos_id=0, image_id=1).generate([request], config)
    state = State([request], SamplerConfig(steps=1, image_guidance=1.0), model.config, 0, 1)
    inputs = build_batch(state, torch.device("cpu")).inputs
    with torch.inference_mode():
        sharp = velocity(
            model(inputs).image_ND, inputs.noisy_ND, inputs.time_N, model.config.prediction, 0.05
        )
        inputs.attention.sharpness_T = torch.full((len(inputs.token_T),), 0.3)
        even = velocity(model(inputs).image_ND, inputs.noisy_ND, inputs.time_N, model.config.prediction, 0.05)
    assert not torch.allclose(sharp, even, atol=1e-3)
    wanted = unpatchify(inputs.noisy_ND + even + 2.5 * (sharp - even), *GRID, model.config.patch)
    assert made.segments[0] == pytest.approx(wanted.numpy(), abs=1e-4)


def test_a_network_that_is_told_the_time_hears_that_of_each_document() -> None:
    state = State(mixed_requests(), SamplerConfig(image_guidance=2.0, text_guidance=1.0), TINY, 0, 1)
    state.text_time_B = np.where(state.text_time_B < 1, np.arange(5) / 10, 1.0)
    inputs = build_batch(state, torch.device("cpu")).inputs
    document = inputs.attention.document_T
    told = [inputs.text_time_T[document == d].unique().tolist() for d in document.unique().tolist()]
    texts = [[pytest.approx(t)] for t in state.text_time_B.tolist()]
    assert told == [*texts, *texts, [1.0]]


@pytest.mark.parametrize(("delay", "steps"), [(0.0, 10), (0.5, 10), (0.5, 8), (0.95, 10)])
def test_a_document_that_begins_with_an_image_writes_its_text_beside_it(delay: float, steps: int) -> None:
    """Text and image move together, the text `delay` behind, as reversed times are trained; no image is inserted."""
    seen: list[tuple[float, float]] = []

    def observe(state: State) -> None:
        seen.append((float(state.text_time_B[0]), state.image_time[0]))

    request = Request((), "document", GRID, 3, images=1)
    config = SamplerConfig(steps=steps, text_delay=delay, max_images=0, flush=10)
    sampler = InsertionSampler(Oracle(Answer([5, 6, 7, 1])), bos_id=0, image_id=1)  # type: ignore[arg-type]
    (out,) = sampler.generate([request], config, observe)
    words, latent = out.segments
    assert words == (5, 6, 7)
    assert latent == pytest.approx(0.5, abs=1e-4)
    behind = np.ceil(delay * steps - 1e-9) / steps
    for t_text, t_img in seen:
        assert t_text == pytest.approx(max(0.0, t_img - behind), abs=1e-6) or t_img == 1
    assert seen[-1] == (1.0, 1.0)
    late = np.array(out.trace.step[:3])
    assert (late >= behind * steps - 1e-9).all()


def test_only_documents_begin_with_images() -> None:
    with pytest.raises(ValueError, match="only a document begins with images"):
        Request((), "text", GRID, images=1)
    with pytest.raises(ValueError, match="text_delay"):
        SamplerConfig(text_delay=1.0)


def test_a_trace_holds_the_states_of_images_where_it_is_asked_for() -> None:
    """Under an oracle every step's estimate is the image itself, and Y_t is on the line from the noise to it."""
    sampler = InsertionSampler(Oracle(Answer([5, 1, 6], value=-1.25)), bos_id=0, image_id=1)  # type: ignore[arg-type]
    config = SamplerConfig(steps=5, image_guidance=1.0, trace_images=True)
    (out,) = sampler.generate([document(0)], config)
    (states,) = out.trace.images
    assert [s.time for s in states] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [s.step for s in states] == list(range(states[0].step, states[0].step + 5))
    noise = (states[0].latent + 1.25 * 0.2) / 0.8
    for state in states:
        assert state.estimate == pytest.approx(-1.25, abs=1e-4)
        assert np.allclose(state.latent, (1 - state.time) * noise - 1.25 * state.time, atol=1e-4)
    assert np.array_equal(states[-1].latent, out.segments[1])
    (plain,) = sampler.generate([document(0)], SamplerConfig(steps=5, image_guidance=1.0))
    assert plain.trace.images == ()
