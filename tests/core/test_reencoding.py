"""Finished images as features: what the network sees of them, in sampling and in training, and that it is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oneflow_core.data.shard import Sample
from oneflow_core.encoders.latent import LatentCodec
from oneflow_core.encoders.understanding import UnderstandingEncoder
from oneflow_core.model import ModelInputs, ModelOutputs, OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, build_objective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example, collate
from oneflow_core.pipeline import OneFlowPipeline, Prompt
from oneflow_core.sampling import Generation, Request, SamplerConfig, build_sampler
from oneflow_core.sampling.forward import build_batch
from oneflow_core.sampling.state import State
from tests.core.networks import GRID, aligned, mixed_requests, random_model
from tests.core.words import TINY, WordTokenizer, image, sample, text
from tests.tiny import tiny_parts

MIXTURE = TaskMixture(0.0, 0.0, 0.0, 0.0, reencoded=1.0)


def read(latents: Tensor) -> Tensor:
    """Every place of the latent as a feature, twice over: [B, 4, 4, 4] -> [B, 16, 8]."""
    return latents.flatten(2).transpose(1, 2).repeat(1, 1, 2)


def refuse(latents: Tensor) -> Tensor:
    raise AssertionError("nobody asked for features")


class Scribe(nn.Module):
    """Knows the only document there is, which may hold several images, all of the value 1/2."""

    def __init__(self, answer: list[int], latent_scale: float = 1.0) -> None:
        super().__init__()
        self.config, self.answer = replace(TINY, latent_scale=latent_scale), answer
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: ModelInputs) -> ModelOutputs:
        within = {*inputs.patch_N.tolist(), *inputs.feature_M.tolist()}
        owners = inputs.attention.document_T[inputs.slot_S]
        bags: list[list[int]] = []
        for document in owners.unique().tolist():
            mine = inputs.slot_S[owners == document][1:].tolist()
            assert not within & set(mine)
            place = [-1, *aligned(inputs.token_T[mine].tolist(), self.answer), len(self.answer)]
            bags += [self.answer[a + 1 : b] for a, b in zip(place, place[1:], strict=False)]
        count = torch.tensor([float(len(bag)) for bag in bags])
        logits = torch.full((len(bags), TINY.vocab_size), -1e9)
        for row, bag in zip(logits, bags, strict=True):
            row[bag or [2]] = 0.0
        image = torch.full_like(inputs.noisy_ND, 0.5)
        return ModelOutputs(torch.where(count == 0, 50.0, -50.0), count.clamp(min=1), logits, None, image)


def recorded(model: nn.Module) -> list[ModelInputs]:
    """What the network is shown from now on."""
    seen: list[ModelInputs] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    return seen


def generate(
    model: nn.Module, requests: list[Request], how: Callable | None = read, **config: object
) -> list[Generation]:
    sampler = build_sampler(model, bos_id=0, image_id=1, reencode=how)  # type: ignore[arg-type]
    return sampler.generate(requests, SamplerConfig(**config))  # type: ignore[arg-type]


def talkative(kind: str, seed: int = 5, **dims: object) -> OneFlowModel:
    """A random network that writes tokens and draws images."""
    model = random_model(seed, objective=kind, **dims)
    with torch.no_grad():
        model.heads.tokens.weight.mul_(8)
        if model.heads.count is not None:
            model.heads.count.bias.copy_(torch.tensor([-0.5, 0.0]))
        else:
            model.heads.tokens.weight[0] -= 0.15
    draws = torch.eye(TINY.vocab_size)[1] * (8 if kind == "oneflow" else 3)
    model.heads.tokens.register_forward_hook(lambda _, given, logits: logits + draws)
    return model


def anchors(inputs: ModelInputs, document: int) -> list[tuple[int, str]]:
    """Of each image of a document: how many tokens are behind its anchor, and of which kind."""
    patches, features = set(inputs.patch_N.tolist()), set(inputs.feature_M.tolist())
    found = []
    for at in (inputs.token_T == 1).nonzero()[:, 0].tolist():
        if inputs.attention.document_T[at] != document:
            continue
        kind = "patches" if at + 1 in patches else "features"
        held, end = patches if kind == "patches" else features, at + 1
        while end in held:
            end += 1
        found.append((end - at - 1, kind))
    return found


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_after_its_last_step_an_image_is_shown_as_features(guidance: float) -> None:
    """Image 1 comes early and is finished while image 2 still flows; what comes out is the same as without."""
    oracle, request = Scribe([5, 1, 6, 1, 7]), Request((), "document", GRID, 3)
    options = {"steps": 8, "image_guidance": guidance}
    (plain,) = generate(oracle, [request], refuse, **options)
    seen = recorded(oracle)
    (out,) = generate(oracle, [request], read, reencode=True, **options)
    assert out.trace == plain.trace
    assert all(np.array_equal(a, b) for a, b in zip(out.segments, plain.segments, strict=True))
    kinds = [anchors(inputs, 0) for inputs in seen]
    assert [(16, "features"), (4, "patches")] in kinds or [(4, "patches"), (16, "features")] in kinds
    assert all(count == {"features": 16, "patches": 4}[kind] for k in kinds for count, kind in k)
    assert all((inputs.time_N < 1).all() for inputs in seen)
    latent = torch.from_numpy(next(s for s in out.segments if isinstance(s, np.ndarray)))
    for inputs in seen:
        assert not inputs.prompt_T[inputs.feature_M].any()
        for features in inputs.feature_MD.reshape(-1, 16, 8):
            assert torch.allclose(features, read(latent[None])[0], atol=1e-4)


def test_the_codecs_scale_is_what_is_read() -> None:
    oracle = Scribe([5, 1, 6, 1, 7], latent_scale=3.0)
    seen = recorded(oracle)
    generate(oracle, [Request((), "document", GRID, 3)], reencode=True, steps=8, image_guidance=1.0)
    shown = torch.cat([inputs.feature_MD for inputs in seen])
    assert len(shown) and shown.numpy() == pytest.approx(1.5, abs=1e-3)


def test_images_of_one_grid_are_read_together_and_each_once() -> None:
    calls: list[tuple[int, ...]] = []

    def counted(latents: Tensor) -> Tensor:
        calls.append(tuple(latents.shape))
        return latents.flatten(2).transpose(1, 2).repeat(1, 1, 2)

    oracle = Scribe([1, 5, 1])
    requests = [Request((), "document", grid, seed) for grid in ((2, 2), (1, 3)) for seed in range(4)]
    generate(oracle, requests, counted, reencode=True, steps=6, image_guidance=1.0)
    assert {shape[1:] for shape in calls} == {(4, 4, 4), (4, 2, 6)}
    assert max(shape[0] for shape in calls) > 1
    assert sum(shape[0] for shape in calls) <= 2 * len(requests)


def test_an_image_that_ends_its_document_is_not_read() -> None:
    requests = [Request(((5, 6),), "image", GRID, seed) for seed in range(2)]
    for kind in ("oneflow", "transfusion"):
        outs = generate(random_model(objective=kind), requests, refuse, reencode=True, steps=3)
        assert [[type(s) for s in out.segments] for out in outs] == [[np.ndarray]] * 2


@pytest.mark.parametrize("kind", ["oneflow", "transfusion"])
@pytest.mark.parametrize("text_guidance", [0.0, 1.0])
def test_a_document_does_not_depend_on_its_batch(kind: str, text_guidance: float) -> None:
    model = talkative(kind)
    options = {"reencode": True, "steps": 5, "max_tokens": 14, "text_guidance": text_guidance, "flush": 3}
    together = generate(model, mixed_requests(), **options)
    seen = recorded(model)
    for request, expected in zip(mixed_requests(), together, strict=True):
        (alone,) = generate(model, [request], **options)
        assert alone.trace == expected.trace
        for a, b in zip(alone.segments, expected.segments, strict=True):
            assert np.allclose(np.asarray(a), np.asarray(b), atol=1e-3)
    assert any(not inputs.prompt_T[inputs.feature_M].all() for inputs in seen)


@pytest.mark.parametrize("kind", ["oneflow", "transfusion"])
def test_it_changes_what_follows_and_nothing_where_it_is_off(kind: str) -> None:
    model, request = talkative(kind), Request(((4,),), "document", GRID, 4)
    options = {"steps": 4, "max_tokens": 16, "flush": 6}
    off, none, on = (
        generate(model, [request], how, **options, **more)[0]
        for how, more in ((refuse, {}), (None, {}), (read, {"reencode": True}))
    )
    assert off.trace == none.trace
    assert all(np.array_equal(a, b) for a, b in zip(off.segments, none.segments, strict=True))
    same = on.trace == off.trace and all(
        np.array_equal(a, b) for a, b in zip(on.segments, off.segments, strict=True)
    )
    assert not same


def test_prompts_from_the_cache_and_images_read_again_go_together() -> None:
    model = talkative("oneflow", prompt_attention="prefix")
    options = {"reencode": True, "steps": 5, "max_tokens": 14, "flush": 4, "text_guidance": 0.5}
    features = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    requests = [Request((features, (4, 5)), "document", GRID, s) for s in range(4)] + mixed_requests()
    cached, anew = (generate(model, requests, **options, prefix_cache=on) for on in (True, False))
    seen = recorded(model)
    generate(model, requests, **options)
    assert any(len(i.feature_M) and not i.prompt_T[i.feature_M].any() for i in seen[1:])
    for a, b in zip(cached, anew, strict=True):
        assert a.trace == b.trace
        for left, right in zip(a.segments, b.segments, strict=True):
            assert np.allclose(np.asarray(left), np.asarray(right), atol=1e-3)


def corrupted(
    document: Sample, seed: int, kind: str = "oneflow", mixture: TaskMixture = MIXTURE, **config: object
) -> Example:
    settings = ObjectiveConfig(kind=kind, mixture=mixture, **config)  # type: ignore[arg-type]
    made = build_objective(settings, replace(TINY, objective=kind), WordTokenizer())  # type: ignore[arg-type]
    return made.corrupt(document, np.random.default_rng(seed))


SHOWN = [
    "token_T",
    "position_T",
    "prompt_T",
    "text_time_T",
    "slot_S",
    "patch_N",
    "noisy_ND",
    "time_N",
    "patch_grid_N2",
]
SHOWN += ["feature_M", "feature_MD", "feature_grid_M2"]
STORY = sample(text([5, 6]), image(), text([7]), image(), seed=2)


def test_training_shows_complete_images_as_features_and_the_others_as_patches() -> None:
    seen = set()
    for seed in range(120):
        e, off = corrupted(STORY, seed), corrupted(STORY, seed, mixture=replace(MIXTURE, reencoded=0.0))
        complete = e.layout.read_image_U
        assert (e.time_N < 1).all() and e.flow_N.all()
        assert len(e.feature_MD) == 4 * len(complete)
        wanted = [STORY.features[i].astype(np.float32) for i in complete]
        assert np.array_equal(e.feature_MD, np.concatenate([np.zeros((0, 8), np.float32), *wanted]))
        assert not e.layout.prompt_T[e.layout.feature_M].any()
        assert len(off.feature_MD) == 0 and off.clock_C.shape == (1,)
        seen.add((len(complete), len(e.layout.image_I)))
    assert {(0, 0), (0, 1), (0, 2), (1, 1), (2, 0)} <= seen


def test_the_share_is_that_of_the_config_and_pairs_are_left_alone() -> None:
    some = replace(MIXTURE, reencoded=0.25, concurrent=1.0)
    whole = [e for e in (corrupted(STORY, s, mixture=some) for s in range(1200)) if e.clock_C[0] > 1.5]
    with_image = [e for e in whole if len(e.feature_MD) or (e.time_N == 1).any()]
    share = np.mean([len(e.feature_MD) > 0 for e in with_image])
    assert share == pytest.approx(0.25, abs=0.07)
    pair = sample(image(), text([5, 6]))
    assert all(len(corrupted(pair, s, mixture=some).feature_MD) == 0 for s in range(40))


@pytest.mark.parametrize("attention", ["full", "prefix"])
def test_copies_have_features_of_their_own(attention: str) -> None:
    """Given images too: with full attention each copy holds the prompt."""
    dims, story = replace(TINY, prompt_attention=attention), STORY
    asked = sample(image("prompt"), text([5, 6], "target"))
    made = build_objective(ObjectiveConfig(mixture=MIXTURE, copies=3), dims, WordTokenizer())  # type: ignore[arg-type]
    model = random_model(prompt_attention=attention)
    for document, rng in ((story, 3), (story, 4), (asked, 5)):
        e = made.corrupt(document, np.random.default_rng(rng))
        assert len(e.feature_MD) == len(e.layout.feature_M) == len(e.feature_grid_M2)
        for number, shown in zip(e.layout.read_image_U.tolist(), e.feature_MD.reshape(-1, 4, 8), strict=True):
            assert np.array_equal(shown, document.features[number].astype(np.float32))
        pack = collate([e])
        assert torch.isfinite(made.loss(model, pack, made.normalisers(pack)).total)
    assert len(e.feature_MD) == (12 if attention == "full" else 4)


def test_the_sampler_lays_out_what_training_did() -> None:
    """A corrupted document as a state: the same inputs, whichever of its images are finished."""
    for seed in range(60):
        e = corrupted(STORY, seed)
        patches = e.noisy_ND.reshape(-1, 4, 16)
        request = Request((), "document", GRID, 0)
        config = SamplerConfig(image_guidance=1.0, reencode=True)
        given = [STORY.features[u].astype(np.float32) for u in e.layout.read_image_U]

        def known(latents: Tensor, given: list = given) -> Tensor:
            return torch.from_numpy(np.stack([given.pop(0) for _ in latents]))

        state = State([request], config, TINY, 0, 1, known)
        state.text_time_B[:] = min(1.0, e.clock_C[0])
        shown = e.layout.token_T[
            np.setdiff1d(np.arange(e.length), np.r_[e.layout.patch_N, e.layout.feature_M])
        ]
        flowing = {int(i): n for n, i in enumerate(e.layout.image_I)}
        numbers = iter(sorted([*flowing, *e.layout.read_image_U.tolist()]))
        for place, token in enumerate(shown[1:]):
            state.insert(np.array([place]), np.array([token]))
            if token == 1 and (number := next(numbers)) in flowing:
                state.patches[-1] = torch.from_numpy(patches[flowing[number]])
                state.image_time[-1] = float(e.time_N[4 * flowing[number]])
            elif token == 1:
                state.image_time[-1] = 1.0
        ours, theirs = build_batch(state, torch.device("cpu")).inputs, collate([e]).inputs
        for name in SHOWN:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), (seed, name)
        assert not given


def test_transfusion_reads_images_with_a_text_after_them_and_the_last_one_at_times() -> None:
    kinds = {True: 0, False: 0}
    for seed in range(200):
        e = corrupted(STORY, seed, "transfusion")
        assert e.layout.read_image_U[0] == 0
        kinds[len(e.layout.read_image_U) == 2] += 1
        assert len(e.time_N) == 8 - 4 * len(e.layout.read_image_U)
        assert e.pair_token_K.tolist() == [5, 6, 1, 7, 1, 0]
    assert kinds[True] == pytest.approx(100, abs=30)
    ends = sample(text([5]), image(), image())
    found = {tuple(corrupted(ends, seed, "transfusion").layout.read_image_U) for seed in range(60)}
    assert found == {(), (0,), (0, 1)}
    last = sample(image(), text([5]), image(), text([6]))
    assert all(len(corrupted(last, s, "transfusion").time_N) == 0 for s in range(9))


def test_causal_sampling_sees_what_transfusion_trains() -> None:
    """Greedy tokens after a finished image, from the cache, against a training pass with that image's features."""
    options = {"steps": 3, "temperature": 0, "max_tokens": 9, "max_images": 1, "image_guidance": 1.0}
    checked = 0
    for seed in range(14):
        model = talkative("transfusion", seed)
        (out,) = generate(model, [Request((), "document", GRID, seed)], reencode=True, **options)
        if [type(s) for s in out.segments] != [tuple, np.ndarray, tuple]:
            continue
        made = sample(*(text(list(s)) if isinstance(s, tuple) else image() for s in out.segments))
        made = replace(made, features=(read(torch.from_numpy(out.segments[1])[None])[0].numpy(),))
        inputs = collate([corrupted(made, 0, "transfusion")]).inputs
        assert len(inputs.feature_M) == 16 and not len(inputs.patch_N)
        inputs.pair_row_K = None
        with torch.no_grad():
            logits = model(inputs).logits_RV.clone()
        drawn = (torch.tensor([0, *out.trace.token]) == 1).cumsum(0) > 0
        logits[drawn, 1] = -torch.inf
        wanted = [*out.trace.token] + [0] * (len(out.trace.token) < 9)
        assert logits.argmax(-1).tolist()[: len(wanted)] == wanted
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("kind", ["oneflow", "transfusion", "masked"])
def test_without_a_way_to_features_it_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="reencode is on, but the sampler was given no way"):
        generate(random_model(objective=kind), [Request((), "text", GRID, 0)], None, reencode=True)


def test_features_of_another_width_are_refused() -> None:
    oracle = Scribe([1, 5, 1])
    with pytest.raises(ValueError, match=r"the model takes features \[1, P, 8\]"):
        generate(
            oracle, [Request((), "document", GRID, 0)], lambda z: torch.zeros(len(z), 4, 9), reencode=True
        )


def test_the_masked_baseline_has_nothing_to_read_again() -> None:
    model = random_model(objective="masked")
    off, on = (
        generate(model, mixed_requests(False), refuse, length=8, steps=4, reencode=r) for r in (False, True)
    )
    assert [a.trace for a in off] == [b.trace for b in on]


def test_the_pipeline_reads_its_own_images_with_the_embedded_parts() -> None:
    codec, encoder = LatentCodec.from_pretrained("embedded"), UnderstandingEncoder.from_pretrained("embedded")
    tiny = tiny_parts()
    torch.manual_seed(1)
    dims = replace(tiny.model.config, latent_channels=codec.channels, feature_dim=encoder.dim)
    model = OneFlowModel(dims).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        model.heads.count.bias[0] = -0.5
        model.image_head.project.weight.normal_()
    draws = 12 * torch.eye(dims.vocab_size)[tiny.tokenizer.image_id]
    model.heads.tokens.register_forward_hook(lambda _, given, logits: logits + draws)
    settings = {"steps": 4, "reencode": True, "image_guidance": 1.0, "max_tokens": 12}
    parts = replace(tiny, model=model, codec=codec, encoder=encoder, sampler=settings)
    seen = recorded(model)
    (document,) = OneFlowPipeline(parts)([Prompt(("One.",), "document")], seeds=3)
    assert len(document.images) > 1
    pictures = np.stack([np.asarray(i) for i in document.images])
    wanted = encoder.encode(pictures).half().float()
    shown = [f for inputs in seen for f in inputs.feature_MD.reshape(-1, *wanted.shape[1:])]
    assert shown and (wanted[0] - wanted[1]).abs().max() > 0.2
    assert all(any(torch.allclose(f, w, atol=2e-2) for w in wanted) for f in shown)
    assert all(not inputs.prompt_T[inputs.feature_M].any() for inputs in seen)
