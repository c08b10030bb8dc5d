"""Sampling without counts: what was put in wrongly is taken out again, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from oneflow_core.model import ModelInputs, ModelOutputs, OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import collate
from oneflow_core.sampling import InsertionSampler, Request, SamplerConfig
from oneflow_core.sampling.state import State
from tests.core.networks import GRID, Lockstep, aligned, mixed_requests, random_model
from tests.core.words import TINY, WordTokenizer, sample, text

FREE = replace(TINY, counts="free")
PLAIN = TaskMixture(concurrent=0.0, text_to_image=0.0, prompt_dropout=0.0, story_prompt=0.0)


class Clumsy(nn.Module):
    """Knows the document, puts in the wrong token every other time, and knows afterwards what does not belong."""

    def __init__(self, answer: list[int], sure: float = 50.0) -> None:
        super().__init__()
        self.config, self.answer, self.sure = FREE, answer, sure
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: ModelInputs) -> ModelOutputs:
        pi, logits, delete = [], [], []
        for document in inputs.attention.document_T.unique().tolist():
            mine = inputs.attention.document_T == document
            given = inputs.token_T[mine & (inputs.prompt_T > 0)]
            shown = inputs.token_T[mine & (inputs.prompt_T == 0)].tolist()
            place = [-1, *aligned(shown, self.answer)]
            right = [i for i, p in enumerate(place) if p >= 0 or not i]
            for i, p in enumerate(place):
                follows = next((q for q in place[i + 1 :] if q >= 0), len(self.answer))
                bag = self.answer[p + 1 : follows] if i in right else []
                pi.append(-50.0 if bag else 50.0)
                row = torch.full((TINY.vocab_size,), -1e9)
                if bag:
                    row[self.answer] = -torch.log(torch.tensor(float(len(self.answer))))
                    row[bag] = torch.logaddexp(row[bag], -torch.log(torch.tensor(float(len(bag)))))
                logits.append(row)
                delete.append(self.sure if i and p < 0 else -self.sure)
            # The prompt's own slot says that it should go: nobody may listen.
            delete[-len(place)] = self.sure
            assert len(given)
        return ModelOutputs(
            torch.tensor(pi),
            torch.ones(len(pi)),
            torch.stack(logits),
            None,
            torch.zeros_like(inputs.noisy_ND),
            torch.tensor(delete),
        )


@pytest.mark.parametrize("answer", [[5, 6, 7, 8], [5, 6, 5, 5, 7, 6]])
@pytest.mark.parametrize("prompt", [(), ((9, 9),)])
def test_what_was_put_in_wrongly_is_taken_out(answer: list[int], prompt: tuple) -> None:
    sampler = InsertionSampler(Clumsy(answer), bos_id=0, image_id=1)  # type: ignore[arg-type]
    requests = [Request(prompt, "text", GRID, seed) for seed in range(20)]
    outs = sampler.generate(requests, SamplerConfig(steps=6, flush=200))
    assert [o.segments for o in outs] == [(tuple(answer),)] * 20
    assert sum(o.trace.deleted for o in outs) > 20
    assert all(len(o.trace.token) == len(o.trace.time) == len(o.trace.step) == len(answer) for o in outs)


def test_without_a_flush_a_wrong_token_goes_as_fast_as_a_missing_one_comes() -> None:
    """A wrong token that is there from the start stands until a time that is uniform under the linear schedule."""
    answer, gone = [5, 6, 7], []

    def watch(state: State) -> None:
        if state.step == 1:
            state.insert(np.flatnonzero(state.elements.slot_E & state.elements.prompt_E), np.full(400, 30))
            state.changed_B[:], state.gaps_B = True, [None] * 400
        there = np.bincount(state.elements.document_E[state.elements.token_E == 30], minlength=400)
        gone.append(1 - there.mean() if state.step else 0)

    sampler = Lockstep(Clumsy(answer), bos_id=0, image_id=1)  # type: ignore[arg-type]
    sampler.generate(
        [Request((), "text", GRID, s) for s in range(400)], SamplerConfig(steps=50, flush=0), watch
    )
    assert gone[-1] == 1
    for step in (10, 25, 40):
        assert gone[step] == pytest.approx((step + 1) / 50, abs=0.08)


def free_model(seed: int = 5, **dims: object) -> OneFlowModel:
    model = random_model(seed, counts="free", **dims)
    with torch.no_grad():
        model.heads.delete.weight.normal_()
        model.heads.delete.bias.zero_()
        model.heads.count.bias.fill_(-1.0)
    return model


@pytest.mark.parametrize("dims", [{}, {"prompt_attention": "prefix"}, {"text_time": True}])
@pytest.mark.parametrize("text_guidance", [0.0, 1.0])
def test_a_document_does_not_depend_on_its_batch(text_guidance: float, dims: dict) -> None:
    sampler = InsertionSampler(free_model(**dims), bos_id=0, image_id=1)
    config = SamplerConfig(steps=6, flush=3, max_tokens=30, text_guidance=text_guidance)
    together = sampler.generate(mixed_requests(), config)
    for request, expected in zip(mixed_requests(), together, strict=True):
        (alone,) = sampler.generate([request], config)
        assert alone.trace == expected.trace
        for a, b in zip(alone.segments, expected.segments, strict=True):
            assert np.allclose(np.asarray(a), np.asarray(b), atol=1e-3)
    assert sum(o.trace.deleted for o in together) > 5
    assert sum(len(o.trace.token) for o in together) > 20


def test_prompts_and_images_stay() -> None:
    model = free_model()
    with torch.no_grad():
        model.heads.delete.weight.zero_()
        model.heads.delete.bias.fill_(50.0)
        model.heads.tokens.weight[1] += 0.5 * torch.randn(TINY.width)
    seen: list[int] = []

    def watch(state: State) -> None:
        assert state.elements.prompt_E.sum() == 1 + 2
        images = (state.elements.kind_E == 1).sum()
        assert images == len(state.patches)
        seen.append(int(images))

    (out,) = InsertionSampler(model, bos_id=0, image_id=1).generate(
        [Request(((4, 4),), "document", GRID, 1)], SamplerConfig(steps=8, flush=4), watch
    )
    assert seen[-1] > 0 and out.trace.deleted > 0
    latents = [s for s in out.segments if isinstance(s, np.ndarray)]
    assert len(latents) == seen[-1]


def by_heart(words: list[int], steps: int = 300) -> tuple[OneFlowModel, InsertionSampler]:
    torch.manual_seed(0)
    model = OneFlowModel(FREE)
    made = OneFlowObjective(ObjectiveConfig(mixture=PLAIN, spurious=0.5), FREE, WordTokenizer())
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1e-3, steps)
    for step in range(steps):
        rngs = [np.random.default_rng(100 * step + i) for i in range(16)]
        pack = collate([made.corrupt(sample(text(words)), rng) for rng in rngs])
        optimiser.zero_grad()
        made.loss(model, pack, made.normalisers(pack)).total.backward()
        optimiser.step()
        slower.step()
    return model, made.sampler(model.eval())


def test_it_learns_a_text_by_heart_and_mends_one_that_is_spoilt() -> None:
    words = [5, 6, 7, 8, 9]
    model, sampler = by_heart(words)
    requests = [Request((), "text", GRID, seed) for seed in range(20)]
    config = SamplerConfig(steps=12, flush=12)

    def spoil(state: State) -> None:
        """Halfway a token more behind every other element: a duplicate, or any."""
        if state.step == 6:
            at = np.flatnonzero(state.elements.slot_E)[::2]
            state.insert(at, np.where(at % 3 == 0, 30, np.maximum(state.elements.token_E[at], 2)))
            state.changed_B[:], state.gaps_B = True, [None] * len(requests)

    sampler = Lockstep(model, bos_id=sampler.bos_id, image_id=sampler.image_id)

    def exact(observe: object = None) -> int:
        return sum(o.segments == (tuple(words),) for o in sampler.generate(requests, config, observe))  # type: ignore[arg-type]

    assert exact() >= 18
    assert exact(spoil) >= 17
    with torch.no_grad():
        model.heads.delete.bias.fill_(-50.0)
    assert exact(spoil) < 10
