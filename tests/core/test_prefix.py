"""Prompts that attend among themselves: one copy for several corruptions, one computation for all steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_core.data.shard import Sample
from oneflow_core.model import ModelInputs, OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example, collate
from oneflow_core.sampling import InsertionSampler, SamplerConfig
from tests.core.networks import mixed_requests, random_model
from tests.core.words import TINY, WordTokenizer, image, sample, text

PREFIX = replace(TINY, prompt_attention="prefix")
CAPTIONS = TaskMixture(concurrent=0.0, text_to_image=0.3, prompt_dropout=0.0)


def objective(copies: int, **config: object) -> OneFlowObjective:
    return OneFlowObjective(
        ObjectiveConfig(mixture=CAPTIONS, copies=copies, **config),
        PREFIX,
        WordTokenizer(),  # type: ignore[arg-type]
    )


def documents() -> list[Sample]:
    return [
        sample(image(), text([5, 6, 7, 8, 9]), seed=1),
        sample(text([3, 4], "prompt"), text([5], "target"), text([6], "prompt"), text([7, 8], "target")),
        sample(text([9, 10]), image(), text([11, 12, 13]), image(), seed=2),
        sample(image("prompt"), text([3, 4], "prompt"), text([5, 6, 7], "target"), seed=3),
        sample(image(), text([20, 21, 22]), seed=4),
    ]


def one_copy(example: Example, copy: int) -> Example:
    """The prefix and one of its copies, as an example of its own."""
    layout = example.layout
    kept_T = (layout.copy_T < 0) | (layout.copy_T == copy)
    place_T = np.cumsum(kept_T) - 1
    patches_N, slots_S = kept_T[layout.patch_N], example.copy_S == copy
    pairs_K = slots_S[example.pair_slot_K]
    over = {
        n: getattr(layout, n)[kept_T]
        for n in ("token_T", "document_T", "element_T", "position_T", "prompt_T")
    }
    alone = replace(
        layout,
        **over,
        copy_T=np.minimum(layout.copy_T[kept_T], 0),
        slot_S=place_T[layout.slot_S[slots_S]],
        patch_N=place_T[layout.patch_N[patches_N]],
        feature_M=place_T[layout.feature_M],
    )
    by_patch = {
        n: getattr(example, n)[patches_N]
        for n in ("noisy_ND", "clean_ND", "noise_ND", "time_N", "patch_grid_N2")
    }
    return replace(
        example,
        layout=alone,
        **by_patch,
        count_S=example.count_S[slots_S],
        pair_slot_K=(np.cumsum(slots_S) - 1)[example.pair_slot_K[pairs_K]],
        pair_token_K=example.pair_token_K[pairs_K],
        copy_S=np.zeros(int(slots_S.sum()), np.int64),
        clock_C=example.clock_C[[copy]],
        weight_C=example.weight_C[[copy]],
        text_targets=example.text_targets // len(example.clock_C),
    )


def test_a_prefix_sees_itself_and_each_copy_sees_the_prefix_and_itself() -> None:
    """The plan of a pack against a mask written out from who is whose."""
    examples = [objective(3).corrupt(d, np.random.default_rng(i)) for i, d in enumerate(documents())]
    inputs = collate(examples).inputs
    document = inputs.attention.document_T
    copy = torch.from_numpy(np.concatenate([e.layout.copy_T for e in examples]))
    seen = torch.zeros(len(document), len(document), dtype=torch.bool)
    plan = inputs.attention
    assert plan.key_P is not None
    queries = plan.query_Q.split([b.rows * b.queries for b in plan.buckets])
    keys = plan.key_P.split([b.rows * b.keys for b in plan.buckets])
    for bucket, query_Q, key_P in zip(plan.buckets, queries, keys, strict=True):
        rows = zip(query_Q.view(bucket.rows, -1), key_P.view(bucket.rows, -1), strict=True)
        for row, (query_L, key_M) in enumerate(rows):
            real = torch.ones_like(key_M, dtype=torch.bool) if bucket.mask is None else bucket.mask[row, 0, 0]
            for query in query_L.unique().tolist():
                seen[query, key_M[real]] = True
    wanted = (document[:, None] == document) & (
        (copy == -1) | ((copy[:, None] >= 0) & (copy[:, None] == copy))
    )
    assert torch.equal(seen[1:], wanted[1:])
    assert (copy == -1).any()


@pytest.mark.parametrize("text_time", [False, True])
@pytest.mark.parametrize("text_normaliser", ["batch", "length"])
def test_copies_that_share_a_prompt_have_the_loss_of_copies_that_do_not(
    text_normaliser: str, text_time: bool
) -> None:
    made = objective(3, text_normaliser=text_normaliser)
    model = random_model(prompt_attention="prefix", text_time=text_time)
    examples = [made.corrupt(d, np.random.default_rng(i)) for i, d in enumerate(documents())]
    shared = collate(examples)
    apart = collate([one_copy(e, c) for e in examples for c in range(3)])
    assert shared.tokens < 0.8 * apart.tokens
    totals, gradients = [], []
    for pack in (shared, apart):
        model.zero_grad()
        out = made.loss(model, pack, made.normalisers(pack))
        out.total.backward()
        totals.append(out.total.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_the_gap_behind_a_prompt_belongs_to_a_carrier_and_sees_the_text() -> None:
    (example,) = [objective(1).corrupt(documents()[3], np.random.default_rng(i)) for i in (0,)]
    layout = example.layout
    first = int(layout.slot_S[0])
    assert layout.token_T[first] == WordTokenizer.bos_id
    assert layout.copy_T[first] == 0 and (layout.copy_T[:first] == -1).all()
    assert not example.layout.slot_S[layout.slot_S < first].size
    bare = objective(1).corrupt(sample(text([5, 6])), np.random.default_rng(0)).layout
    assert bare.token_T.tolist().count(WordTokenizer.bos_id) == 1 and (bare.copy_T == 0).all()


class Counting(torch.nn.Module):
    """The network, and how many tokens it has been shown."""

    def __init__(self, model: OneFlowModel) -> None:
        super().__init__()
        self.model, self.config, self.embedding, self.tokens = model, model.config, model.embedding, 0

    def forward(self, inputs: ModelInputs, *cache: object) -> object:
        self.tokens += len(inputs.token_T)
        return self.model(inputs, *cache)


@pytest.mark.parametrize("text_time", [False, True])
@pytest.mark.parametrize("image_weak", ["unprompted", "entropy"])
@pytest.mark.parametrize("text_guidance", [0.0, 1.0])
def test_sampling_with_the_cache_equals_sampling_without_it(
    text_guidance: float, image_weak: str, text_time: bool
) -> None:
    model = random_model(prompt_attention="prefix", text_time=text_time)
    made, shown = {}, {}
    for cached in (True, False):
        config = SamplerConfig(
            steps=9,
            flush=2,
            max_tokens=40,
            image_guidance=2.0,
            image_weak=image_weak,  # type: ignore[arg-type]
            text_guidance=text_guidance,
            prefix_cache=cached,
        )
        counting = Counting(model)
        sampler = InsertionSampler(counting, bos_id=0, image_id=1)  # type: ignore[arg-type]
        made[cached], shown[cached] = sampler.generate(mixed_requests(), config), counting.tokens
    for a, b in zip(made[True], made[False], strict=True):
        assert a.trace == b.trace
        for left, right in zip(a.segments, b.segments, strict=True):
            assert np.allclose(np.asarray(left), np.asarray(right), atol=1e-4)
    assert sum(len(g.trace.token) for g in made[True]) > 10
    assert shown[True] < shown[False]


def test_a_document_with_a_prefix_does_not_depend_on_its_batch() -> None:
    sampler = InsertionSampler(random_model(prompt_attention="prefix"), bos_id=0, image_id=1)
    config = SamplerConfig(steps=6, max_tokens=30, text_guidance=0.5)
    together = sampler.generate(mixed_requests(), config)
    for request, expected in zip(mixed_requests(), together, strict=True):
        (alone,) = sampler.generate([request], config)
        assert alone.trace.token == expected.trace.token


def test_copies_below_one_and_a_prefix_for_a_causal_model_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ObjectiveConfig(copies=0)
    with pytest.raises(ValueError, match="causal"):
        replace(TINY, objective="transfusion", prompt_attention="prefix")
    with pytest.raises(ValueError, match="none of: full, prefix"):
        replace(TINY, prompt_attention="half")
