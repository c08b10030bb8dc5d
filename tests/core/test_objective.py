"""The corruption and the loss: METHOD section 9's invariants, by brute force and by Monte Carlo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.model import OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example, collate
from tests.core.words import TINY, WordTokenizer, image, sample, text

PLAIN = TaskMixture(concurrent=0.0, text_to_image=1.0, prompt_dropout=0.0, story_prompt=0.0)


def objective(**mixture: float) -> OneFlowObjective:
    return OneFlowObjective(ObjectiveConfig(mixture=replace(PLAIN, **mixture)), TINY, WordTokenizer())


def restore(example: Example) -> list[int]:
    """Puts every missing element back behind its slot; patches and features are left out."""
    layout, bags = example.layout, {}
    for slot, token in zip(example.pair_slot_K, example.pair_token_K, strict=True):
        bags.setdefault(int(layout.slot_S[slot]), []).append(int(token))
    hidden = set(layout.patch_N.tolist()) | set(layout.feature_M.tolist())
    out: list[int] = []
    for position, token in enumerate(layout.token_T.tolist()):
        if position not in hidden:
            out += [token, *bags.get(position, [])]
    return out


@given(
    st.lists(st.lists(st.integers(2, 39), min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(0, 10_000),
)
@settings(deadline=None)
def test_any_interleaved_document_is_restored_from_its_corruption(texts: list[list[int]], seed: int) -> None:
    segments = [s for ids in texts for s in (text(ids), image())]
    clean = [0] + [t for ids in texts for t in (*ids, 1)]
    for s in (segments, segments[1:]):
        example = objective(story_prompt=0.5).corrupt(sample(*s), np.random.default_rng(seed))
        expected = clean if s is segments else [0, *clean[1 + len(texts[0]) :]]
        if len(s) > 2:
            assert restore(example) == expected
        assert example.count_S.sum() == len(example.pair_token_K)
        assert len(example.layout.patch_N) == 4 * (example.layout.token_T == 1).sum()
        assert len(example.count_S) == len(example.layout.slot_S)
        assert (np.diff(example.pair_slot_K) >= 0).all()


def test_text_to_image_gives_the_text_and_asks_only_for_the_image() -> None:
    example = objective().corrupt(sample(image(), text([5, 6, 7])), np.random.default_rng(0))
    assert example.layout.token_T.tolist() == [0, 5, 6, 7, 1, 0, 0, 0, 0]
    assert example.layout.prompt_T.tolist() == [True] * 4 + [False] * 5
    assert len(example.count_S) == 0
    assert example.text_targets == 0
    assert example.flow_N.all()
    t = example.time_N[:, None]
    assert np.allclose(example.noisy_ND, t * example.clean_ND + (1 - t) * example.noise_ND, atol=1e-6)


def test_latents_are_divided_by_their_scale() -> None:
    document = sample(image(), text([5, 6, 7]))
    plain = objective().corrupt(document, np.random.default_rng(0))
    wide = OneFlowObjective(ObjectiveConfig(mixture=PLAIN), replace(TINY, latent_scale=2.5), WordTokenizer())
    scaled = wide.corrupt(document, np.random.default_rng(0))
    assert np.allclose(2.5 * scaled.clean_ND, plain.clean_ND, atol=1e-6)
    assert np.array_equal(scaled.noise_ND, plain.noise_ND)
    with pytest.raises(ValueError, match="latent_scale"):
        replace(TINY, latent_scale=0.0)


def test_image_to_text_shows_features_and_has_slots_from_the_image_on() -> None:
    example = objective(text_to_image=0.0).corrupt(sample(image(), text([5, 6, 7])), np.random.default_rng(4))
    assert example.feature_MD.shape == (4, 8)
    assert example.layout.slot_S[0] == 1
    assert restore(example) == [0, 1, 5, 6, 7]
    assert example.text_targets == 3


def test_prompts_own_no_slot_but_their_last_element() -> None:
    doc = sample(
        text([2, 3, 4], "prompt"), text([5, 6], "target"), text([7, 8], "prompt"), text([9], "target")
    )
    for seed in range(30):
        example = objective().corrupt(doc, np.random.default_rng(seed))
        tokens = example.layout.token_T.tolist()
        assert [t for t in tokens if t in (0, 2, 3, 4, 7, 8)] == [0, 2, 3, 4, 7, 8]
        owners = {tokens[p] for p in example.layout.slot_S}
        assert owners <= {4, 5, 6, 8, 9}
        assert {4, 8} <= owners
        assert restore(example) == [0, 2, 3, 4, 5, 6, 7, 8, 9]


def test_kept_share_is_kappa_and_the_clock_is_uniform() -> None:
    kept, clocks = [], []
    ids = list(range(2, 32))
    for seed in range(1500):
        example = objective().corrupt(sample(text(ids)), np.random.default_rng(seed))
        kept.append((len(example.layout.token_T) - 1) / 30)
        clocks.append(float(example.clock_C[0]))
    assert np.mean(kept) == pytest.approx(0.5, abs=0.02)
    assert np.corrcoef(kept, clocks)[0, 1] > 0.9
    assert np.histogram(clocks, bins=5, range=(0, 1))[0] / 1500 == pytest.approx(np.full(5, 0.2), abs=0.04)


def test_interleaved_budgets_equal_method_7_6() -> None:
    """tau ~ U[0, 2]: 3/4 of text kept, images absent 1/4, in flow 1/2 with flat times, complete 1/4."""
    doc = sample(text([2, 3, 4, 5]), image(), text([6, 7, 8, 9]), image())
    images, flowing, text_kept, times = 0, 0, 0, []
    runs = 3000
    for seed in range(runs):
        e = objective().corrupt(doc, np.random.default_rng(seed))
        images += (e.layout.token_T == 1).sum()
        text_kept += (e.layout.token_T > 1).sum()
        per_image = e.time_N[::4]
        flowing += e.flow_N[::4].sum()
        times += per_image[e.flow_N[::4]].tolist()
        assert (per_image <= min(1.0, e.clock_C[0]) + 1e-6).all()
    assert text_kept / (8 * runs) == pytest.approx(0.75, abs=0.015)
    assert 1 - images / (2 * runs) == pytest.approx(0.25, abs=0.015)
    assert flowing / (2 * runs) == pytest.approx(0.5, abs=0.02)
    assert np.histogram(times, bins=5, range=(0, 1))[0] / len(times) == pytest.approx(
        np.full(5, 0.2), abs=0.02
    )


def test_complete_images_have_no_flow_loss() -> None:
    doc = sample(text([2]), image(), text([3]), image())
    seen = False
    for seed in range(60):
        e = objective().corrupt(doc, np.random.default_rng(seed))
        assert (e.flow_N == (e.time_N < 1)).all()
        seen |= bool((~e.flow_N).any())
        assert np.array_equal(e.noisy_ND[~e.flow_N], e.clean_ND[~e.flow_N])
    assert seen


def test_dropped_prompts_leave_the_target_alone() -> None:
    o = objective(prompt_dropout=1.0)
    assert o.corrupt(sample(image(), text([5, 6])), np.random.default_rng(0)).layout.token_T.tolist()[:2] == [
        0,
        1,
    ]


def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_packed() -> None:
    torch.manual_seed(0)
    model, o = OneFlowModel(TINY), objective(text_to_image=0.4, concurrent=0.3)
    docs = [sample(image(), text([5, 6, 7, 8]), seed=i) for i in range(10)]
    examples = [o.corrupt(d, np.random.default_rng(i)) for i, d in enumerate(docs)]
    packs = {"one": [collate(examples)], "two": [collate(examples[:3]), collate(examples[3:])]}
    totals, gradients = {}, {}
    for name, parts in packs.items():
        norm = {k: sum(o.normalisers(p)[k] for p in parts) for k in ("text", "image")}
        model.zero_grad()
        losses = [o.loss(model, p, norm) for p in parts]
        sum(loss.total for loss in losses).backward()
        totals[name] = sum(float(loss.total.detach()) for loss in losses)
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters()])
        for loss in losses:
            parts_sum = sum(float(loss.parts[k]) for k in ("tokens", "rate", "zero", "image"))
            assert parts_sum == pytest.approx(float(loss.total.detach()), rel=1e-5)
    assert totals["one"] == pytest.approx(totals["two"], rel=1e-5)
    assert torch.allclose(gradients["one"], gradients["two"], atol=1e-6)


def test_the_same_generator_gives_the_same_example() -> None:
    o, doc = objective(concurrent=0.5), sample(image(), text([5, 6, 7]))
    a, b = (o.corrupt(doc, np.random.default_rng(11)) for _ in range(2))
    assert a.layout.token_T.tolist() == b.layout.token_T.tolist()
    assert np.array_equal(a.noisy_ND, b.noisy_ND)


def test_arrays_that_do_not_fit_the_model_are_refused() -> None:
    doc = sample(image(), text([5]))
    wrong = replace(doc, latents=(np.zeros((16, 4, 4), np.float16),))
    with pytest.raises(ValueError, match="16 channels, the model takes 4"):
        objective().corrupt(wrong, np.random.default_rng(0))
    wrong = replace(doc, features=(np.zeros((4, 9), np.float16),))
    with pytest.raises(ValueError, match="9 wide, the model takes 8"):
        objective(text_to_image=0.0).corrupt(wrong, np.random.default_rng(0))


def test_a_network_of_plain_rates_says_one_poisson_law() -> None:
    torch.manual_seed(0)
    model = OneFlowModel(replace(TINY, counts="plain"))
    heads = model.heads
    with torch.no_grad():
        heads.count.weight.normal_()
        pi_logit, rate = heads.counts(torch.randn(200, TINY.width))
    total = torch.sigmoid(-pi_logit) * rate
    assert torch.allclose(torch.sigmoid(pi_logit), torch.exp(-total), atol=1e-5)
    assert (rate >= 1 - 1e-5).all()
    fresh = OneFlowModel(replace(TINY, counts="plain")).heads
    start = fresh.counts(torch.randn(3, TINY.width))
    assert torch.allclose(torch.sigmoid(-start[0]) * start[1], torch.ones(3), atol=1e-3)


@pytest.mark.parametrize("normaliser", ["batch", "constant", "length"])
@pytest.mark.parametrize("counts", ["gated", "plain"])
def test_the_text_loss_is_what_its_normaliser_says(normaliser: str, counts: str) -> None:
    """Against the sum over documents, one by one, of weight * (CE + Poisson + BCE), written out."""
    config = ObjectiveConfig(
        mixture=PLAIN, text_normaliser=normaliser, text_constant=11.0, time_weight="hazard"
    )
    dims = replace(TINY, counts=counts)
    made = OneFlowObjective(config, dims, WordTokenizer())
    torch.manual_seed(0)
    model = OneFlowModel(dims)
    with torch.no_grad():
        model.heads.count.weight.normal_()
    documents = [sample(text(list(range(2, 5 + 4 * n)))) for n in range(4)]
    examples = [made.corrupt(d, np.random.default_rng(n)) for n, d in enumerate(documents)]
    pack = collate(examples)
    parts = made.loss(model, pack, made.normalisers(pack)).parts
    wanted = targets = 0.0
    for example in examples:
        alone = collate([example])
        out = model(alone.inputs)
        k, rate, pi = alone.count_S.double(), out.rate_S.double(), torch.sigmoid(out.pi_logit_S.double())
        if counts == "plain":
            total = (1 - pi) * rate
            loss = (total - k * total.log()).sum()
        else:
            loss = torch.where(k > 0, rate - k * rate.log() - (1 - pi).log(), -pi.log()).sum()
        weight = min(20.0, 1 / (1 - float(example.clock_C[0])))
        if normaliser == "length":
            weight /= example.length
        wanted += weight * (loss + out.nll_K.double().sum()).item()
        targets += example.text_targets
    divisor = {"batch": targets, "constant": 4 * 11.0, "length": 4.0}[normaliser]
    found = sum(float(parts[name]) for name in ("tokens", "rate", "zero"))
    assert found == pytest.approx(wanted / divisor, rel=1e-4)


def test_complete_texts_weigh_what_the_config_says() -> None:
    made = OneFlowObjective(ObjectiveConfig(mixture=PLAIN, complete_weight=0.25), TINY, WordTokenizer())
    document = sample(text([5, 6]), image(), text([7]), image())
    seen = {True: set(), False: set()}
    for seed in range(40):
        example = made.corrupt(document, np.random.default_rng(seed))
        seen[example.clock_C[0] > 1].add(example.weight_C[0])
    assert seen == {True: {0.25}, False: {1.0}}
