"""AR + FM: what it asks, what sees what, and sampling with its cache against whole passes without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_core.flows.image import unpatchify, velocity
from oneflow_core.model import ModelInputs, ModelOutputs, OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, TransfusionObjective, build_objective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import collate
from oneflow_core.sampling import CausalSampler, Request, SamplerConfig, build_sampler
from tests.core.networks import GRID, mixed_requests, random_model
from tests.core.words import TINY, WordTokenizer, image, sample, text

CAUSAL = replace(TINY, objective="transfusion")
PLAIN = TaskMixture(concurrent=0.0, text_to_image=0.0, prompt_dropout=0.0, story_prompt=0.0)


def objective(**config: object) -> TransfusionObjective:
    settings = ObjectiveConfig(**{"kind": "transfusion", "mixture": PLAIN, **config})  # type: ignore[arg-type]
    made = build_objective(settings, CAUSAL, WordTokenizer())  # type: ignore[arg-type]
    assert isinstance(made, TransfusionObjective)
    return made


def asked(example: object) -> list[tuple[int, int]]:
    """(token that is shown, token that is asked for) at every slot."""
    layout = example.layout  # type: ignore[attr-defined]
    return list(
        zip(layout.token_T[layout.slot_S].tolist(), example.pair_token_K.tolist(), strict=True)  # type: ignore[attr-defined]
    )


def test_every_element_asks_for_the_next_and_the_last_for_the_end() -> None:
    rng = np.random.default_rng(0)
    assert asked(objective().corrupt(sample(text([5, 6, 7])), rng)) == [(0, 5), (5, 6), (6, 7), (7, 0)]
    caption = objective().corrupt(sample(image(), text([5, 6])), rng)
    assert asked(caption) == [(1, 5), (5, 6), (6, 0)]
    assert len(caption.feature_MD) == 4
    turns = sample(text([2, 3], "prompt"), text([5], "target"), text([6], "prompt"), text([7], "target"))
    assert asked(objective().corrupt(turns, rng)) == [(3, 5), (5, 0), (6, 7), (7, 0)]
    story = objective().corrupt(sample(text([5]), image(), text([6]), image()), rng)
    assert asked(story) == [(0, 5), (5, 1), (1, 6), (6, 1), (1, 0)]
    drawing = objective(mixture=replace(PLAIN, text_to_image=1.0)).corrupt(sample(image(), text([5, 6])), rng)
    assert asked(drawing) == [] and drawing.text_targets == 0 and drawing.flow_N.all()


def test_a_token_sees_what_is_before_it_and_a_patch_its_image_too() -> None:
    """Changing a token, or a patch, changes what is said after it (or in its image), and nothing before."""
    example = objective().corrupt(sample(text([5, 6]), image(), text([7, 8])), np.random.default_rng(0))
    inputs, model = collate([example]).inputs, random_model(objective="transfusion")
    tokens, patches = inputs.token_T.tolist(), inputs.patch_N.tolist()
    assert tokens[:3] == [0, 5, 6] and patches == [4, 5, 6, 7]

    def hidden() -> torch.Tensor:
        return model.backbone(model.embed(inputs)[0], inputs.position_T, inputs.attention)

    with torch.no_grad():
        before = hidden()
        inputs.token_T[2] = 9
        changed = ((hidden() - before).abs().amax(-1) > 1e-6).tolist()
        assert changed == [False] * 2 + [True] * 8
        inputs.token_T[2] = 6
        inputs.noisy_ND[3] += 1
        changed = ((hidden() - before).abs().amax(-1) > 1e-6).tolist()
        assert changed == [False] * 3 + [True] * 7


def whole_pass(
    model: OneFlowModel, request: Request, made: list[int], images: list[torch.Tensor], t: float
) -> tuple[ModelOutputs, ModelInputs]:
    """The network on a document without any cache, the last image at time t and others at 1."""
    pieces = [p for p in request.prompt if isinstance(p, tuple)]
    shown = sample(*(text(list(p), "prompt") for p in pieces), text([2], "target"))
    example = objective().corrupt(shown, np.random.default_rng(0))
    tokens = [0, *(i for p in pieces for i in p)]
    order, patch_at = list(range(len(tokens))), []
    for token in made:
        order.append(order[-1] + 1)
        tokens.append(token)
        if token == 1:
            patch_at += range(len(tokens), len(tokens) + 4)
            order += [order[-1]] * 4
            tokens += [0] * 4
    prompt = np.arange(len(tokens)) < 1 + sum(map(len, pieces))
    layout = replace(
        example.layout,
        token_T=np.array(tokens),
        document_T=np.zeros(len(tokens), np.int64),
        copy_T=np.zeros(len(tokens), np.int64),
        element_T=np.array(order),
        position_T=np.arange(len(tokens)),
        prompt_T=prompt,
        slot_S=np.flatnonzero(np.diff(np.r_[-1, order])),
        patch_N=np.array(patch_at, np.int64),
    )
    count = len(layout.slot_S)
    times = [1.0] * (4 * len(images))
    times[len(times) - 4 :] = [t] * min(4, len(times))
    flat = torch.cat(images).numpy() if images else np.zeros((0, 16), np.float32)
    whole = replace(
        example,
        layout=layout,
        count_S=np.ones(count, np.int64),
        pair_slot_K=np.arange(count),
        pair_token_K=np.zeros(count, np.int64),
        copy_S=np.zeros(count, np.int64),
        noisy_ND=flat,
        clean_ND=flat,
        noise_ND=flat,
        time_N=np.array(times, np.float32),
        patch_grid_N2=np.array([(0, 0), (0, 1), (1, 0), (1, 1)] * len(images)).reshape(-1, 2),
    )
    inputs = collate([whole]).inputs
    inputs.pair_row_K = None
    inputs.logit_slot_R = torch.arange(count)
    return model(inputs), inputs


@pytest.mark.parametrize("seed", range(6))
def test_sampling_with_the_cache_equals_whole_passes(seed: int) -> None:
    """Greedy tokens and images of a document, one after the other, each from a pass over the whole document."""
    model = random_model(seed, objective="transfusion")
    with torch.no_grad():
        model.heads.tokens.weight.mul_(8)
        model.heads.tokens.weight[0] -= 0.15
    request = Request(((4, 5),), "document", GRID, seed)
    config = SamplerConfig(steps=3, temperature=0, max_tokens=9, max_images=2, image_guidance=1.0)
    (out,) = CausalSampler(model, bos_id=0, image_id=1).generate([request], config)
    made: list[int] = []
    images: list[torch.Tensor] = []
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        while len(made) < 9:
            logits = whole_pass(model, request, made, images, 1.0)[0].logits_RV[-1].clone()
            if made.count(1) == 2:
                logits[1] = -torch.inf
            rng.random()
            if (token := int(logits.argmax())) == 0:
                break
            made.append(token)
            if token == 1:
                images.append(torch.from_numpy(rng.standard_normal((4, 16), np.float32)))
                for step in range(3):
                    outputs, inputs = whole_pass(model, request, made, images, step / 3)
                    v = velocity(outputs.image_ND, inputs.noisy_ND, inputs.time_N, "clean", 0.1)[-4:]
                    images[-1] = images[-1] + v / 3
    assert list(out.trace.token) == made
    latents = [s for s in out.segments if isinstance(s, np.ndarray)]
    assert len(latents) == len(images)
    for ours, theirs in zip(latents, images, strict=True):
        assert np.allclose(ours, unpatchify(theirs, 2, 2, 2).numpy(), atol=1e-4)


def test_the_documents_of_the_last_test_hold_tokens_and_images() -> None:
    kinds = set()
    for seed in range(6):
        model = random_model(seed, objective="transfusion")
        with torch.no_grad():
            model.heads.tokens.weight.mul_(8)
            model.heads.tokens.weight[0] -= 0.15
        config = SamplerConfig(steps=3, temperature=0, max_tokens=9, max_images=2, image_guidance=1.0)
        request = Request(((4, 5),), "document", GRID, seed)
        (out,) = CausalSampler(model, bos_id=0, image_id=1).generate([request], config)
        kinds |= {type(s) for s in out.segments}
    assert kinds == {tuple, np.ndarray}


@pytest.mark.parametrize("text_guidance", [0.0, 1.0])
@pytest.mark.parametrize("image_guidance", [1.0, 2.5])
def test_a_document_does_not_depend_on_its_batch(text_guidance: float, image_guidance: float) -> None:
    sampler = build_sampler(random_model(objective="transfusion"), bos_id=0, image_id=1)
    config = SamplerConfig(
        steps=4, max_tokens=12, text_guidance=text_guidance, image_guidance=image_guidance, max_images=1
    )
    together = sampler.generate(mixed_requests(), config)
    for request, expected in zip(mixed_requests(), together, strict=True):
        (alone,) = sampler.generate([request], config)
        assert alone.trace.token == expected.trace.token
        for a, b in zip(alone.segments, expected.segments, strict=True):
            assert np.allclose(np.asarray(a), np.asarray(b), atol=1e-3)
    assert [type(s) for s in together[0].segments] == [np.ndarray]
    assert 1 not in together[1].trace.token
    assert all(len(g.trace.token) <= 12 for g in together)


def test_it_learns_a_document_by_heart_and_writes_it() -> None:
    torch.manual_seed(0)
    model = OneFlowModel(CAUSAL)
    made, doc = objective(), sample(text([5, 6, 7]), image(), text([8, 9]), seed=3)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(150):
        pack = collate([made.corrupt(doc, np.random.default_rng(100 * step + i)) for i in range(8)])
        loss = made.loss(model, pack, made.normalisers(pack)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    config = SamplerConfig(steps=24, temperature=0, image_guidance=1.0)
    (out,) = made.sampler(model.eval()).generate([Request((), "document", GRID, 0)], config)
    assert out.trace.token == (5, 6, 7, 1, 8, 9)
    error = np.abs(np.asarray(out.segments[1]) - doc.latents[0].astype(np.float32)).mean()
    assert error < 0.25


def test_every_parameter_has_a_gradient() -> None:
    model, made = OneFlowModel(CAUSAL), objective()
    pack = collate([made.corrupt(sample(text([5, 6])), np.random.default_rng(0))])
    made.loss(model, pack, made.normalisers(pack)).total.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_objective_and_a_model_of_another_are_refused() -> None:
    with pytest.raises(ValueError, match="the objective is transfusion, the model's is oneflow"):
        build_objective(ObjectiveConfig(kind="transfusion"), TINY, WordTokenizer())  # type: ignore[arg-type]
