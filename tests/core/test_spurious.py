"""Wrong tokens in the corruption, and the optimum that the loss without counts has on an enumerated toy."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.flows.insertion import deletion_loss, insertion_terms
from oneflow_core.model import OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example, collate
from tests.core.words import TINY, WordTokenizer, image, sample, text

PLAIN = TaskMixture(concurrent=0.0, text_to_image=0.0, prompt_dropout=0.0, story_prompt=0.0)
FREE = replace(TINY, counts="free")


def objective(dims: object = FREE, **config: object) -> OneFlowObjective:
    settings = ObjectiveConfig(**{"mixture": PLAIN, "spurious": 0.6, **config})  # type: ignore[arg-type]
    return OneFlowObjective(settings, dims, WordTokenizer())  # type: ignore[arg-type]


def restore(example: Example) -> list[int]:
    """Takes out the flagged elements and puts every bag back behind its slot; patches and features are left out."""
    layout, bags = example.layout, defaultdict(list)
    assert example.spurious_S is not None
    for slot, token in zip(example.pair_slot_K, example.pair_token_K, strict=True):
        bags[int(layout.slot_S[slot])].append(int(token))
    wrong = set(layout.slot_S[example.spurious_S == 1].tolist())
    hidden = set(layout.patch_N.tolist()) | set(layout.feature_M.tolist())
    out: list[int] = []
    for position, token in enumerate(layout.token_T.tolist()):
        if position not in hidden:
            out += [token] * (position not in wrong) + bags[position]
    return out


@given(
    st.lists(st.lists(st.integers(2, 8), min_size=1, max_size=8), min_size=1, max_size=3),
    st.integers(0, 10_000),
    st.sampled_from(["full", "prefix"]),
)
@settings(deadline=None)
def test_without_what_is_flagged_and_with_what_is_missing_it_is_the_document(
    texts: list[list[int]], seed: int, attention: str
) -> None:
    made = objective(replace(FREE, prompt_attention=attention))
    story = sample(*(s for ids in texts for s in (text(ids), image())))
    turns = sample(*(s for ids in texts for s in (text([9, 9], "prompt"), text(ids, "target"))))
    behind = [0] if attention == "prefix" else []
    words = [w for ids in texts for w in (*ids, 1)]
    chat = [0, 9, 9, *behind, *texts[0]] + [w for ids in texts[1:] for w in (9, 9, *ids)]
    for document, whole in ((story, [0, *words]), (turns, chat)):
        example = made.corrupt(document, np.random.default_rng(seed))
        if len(document.document.segments) > 2:
            assert restore(example) == whole
        labels, layout = example.spurious_S, example.layout
        assert labels is not None and len(labels) == len(layout.slot_S) == len(example.count_S)
        asked = ~layout.prompt_T[layout.slot_S] & (layout.token_T[layout.slot_S] > 1)
        assert ((labels >= 0) == asked).all()
        assert not np.isin(layout.token_T[layout.slot_S][labels == 1], (0, 1)).any()
        assert (np.diff(example.pair_slot_K) >= 0).all()
        assert example.text_targets == sum(map(len, texts)) or len(document.document.segments) == 2


def test_there_are_as_many_as_the_config_says_of_both_kinds_and_everywhere() -> None:
    ids, wrong, right, own, places = list(range(2, 12)), 0, 0, 0, Counter[int]()
    runs = 3000
    for seed in range(runs):
        e = objective(spurious=0.3).corrupt(sample(text(ids)), np.random.default_rng(seed))
        tokens, labels = e.layout.token_T, e.spurious_S
        assert labels is not None
        wrong += int((labels == 1).sum())
        right += int((labels == 0).sum())
        own += int(np.isin(tokens[e.layout.slot_S][labels == 1], ids).sum())
        if e.clock_C[0] > 0.97:
            places.update(np.flatnonzero(labels == 1).tolist())
    assert wrong / right == pytest.approx(0.3, abs=0.02)
    assert own / wrong == pytest.approx(0.5 + 0.5 * 10 / 38, abs=0.03)
    assert set(range(1, 11)) <= set(places)
    none = objective(spurious=0.0).corrupt(sample(text(ids)), np.random.default_rng(0))
    assert none.spurious_S is not None and (none.spurious_S < 1).all()
    gated = objective(TINY).corrupt(sample(text(ids)), np.random.default_rng(0))
    assert gated.spurious_S is None


def test_an_empty_text_may_hold_nothing_but_wrong_tokens() -> None:
    labels = [
        objective().corrupt(sample(text([5, 6, 7])), np.random.default_rng(s)).spurious_S for s in range(400)
    ]
    assert any((x == 1).any() and not (x == 0).any() for x in labels)  # type: ignore[union-attr]


def test_of_equal_neighbours_the_right_one_is_flagged() -> None:
    seen = 0
    for seed in range(800):
        e = objective().corrupt(sample(text([5, 6, 5, 5])), np.random.default_rng(seed))
        shown, labels = e.layout.token_T[e.layout.slot_S], e.spurious_S
        assert labels is not None
        for i in range(1, len(shown) - 1):
            if shown[i] == shown[i + 1] and labels[i] == 1 and labels[i + 1] == 0:
                assert e.count_S[i] > 0  # something is missing between them, so they are no neighbours
            seen += shown[i] == shown[i + 1] and labels[i] == 0 and labels[i + 1] == 1
    assert seen > 50


def test_images_alone_and_given_texts_have_none() -> None:
    drawing = objective(mixture=replace(PLAIN, text_to_image=1.0), spurious=3.0)
    e = drawing.corrupt(sample(image(), text([5, 6])), np.random.default_rng(0))
    assert e.layout.token_T.tolist() == [0, 5, 6, 1, 0, 0, 0, 0]
    assert e.spurious_S is not None and len(e.spurious_S) == 0
    with pytest.raises(ValueError, match="spurious -1"):
        ObjectiveConfig(spurious=-1)


def toy() -> list[tuple[float, tuple[int, ...], list[int], list[list[int]]]]:
    """(probability, what is shown, label and bag of each shown element) of two documents with up to one wrong token.

    Each token is kept with probability 1/2; with probability 1/4 one of tokens 0 to 2 stands at a random place.
    """
    outcomes = []
    for words, keep in product(((0, 1), (0, 2)), product((False, True), repeat=2)):
        for place, wrong in [(None, 0), *product(range(3), range(3))]:
            probability = 1 / 2 * 1 / 4 * (3 / 4 if place is None else 1 / 4 / 9)
            shown, labels, bags = [-1], [-1], [[]]
            for i in range(3):
                if place == i:
                    shown, labels, bags = [*shown, wrong], [*labels, 1], [*bags, []]
                if i < 2 and keep[i]:
                    shown, labels, bags = [*shown, words[i]], [*labels, 0], [*bags, []]
                elif i < 2:
                    bags[-1].append(words[i])
            outcomes.append((probability, tuple(shown), labels, bags))
    return outcomes


def test_the_loss_is_least_at_the_conditional_laws_of_a_toy() -> None:
    """A table with pi, Q and d of its own for every state and slot goes to what enumeration says of them."""
    outcomes = toy()
    assert sum(p for p, *_ in outcomes) == pytest.approx(1)
    cells = sorted({(shown, i) for _, shown, *_ in outcomes for i in range(len(shown))})
    number = {cell: n for n, cell in enumerate(cells)}
    slot = torch.tensor([number[x, i] for _, x, *_ in outcomes for i in range(len(x))])
    weight_S = torch.tensor([p for p, x, *_ in outcomes for _ in x])
    label_S = torch.tensor([f for *_, labels, _ in outcomes for f in labels])
    bags = [bag for *_, bags in outcomes for bag in bags]
    count_S = torch.tensor([len(bag) for bag in bags])
    row_K = torch.repeat_interleave(torch.arange(len(bags)), count_S)
    token_K = torch.tensor([token for bag in bags for token in bag])
    table = torch.zeros(len(cells), 5, requires_grad=True)
    optimiser = torch.optim.LBFGS([table], max_iter=4000, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        out = table.double()[slot]
        nll_K = -out[:, 2:].log_softmax(-1)[row_K, token_K]
        ones = torch.ones(len(slot))
        terms = insertion_terms(out[:, 0], ones, count_S, nll_K, weight_S, weight_S[row_K], counts="free")
        assert float(terms.rate) == 0
        loss = 1e3 * (terms.tokens + terms.zero + deletion_loss(out[:, 1], label_S, weight_S))
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        for cell, n in number.items():
            here = slot == n
            mass = weight_S[here].sum()
            empty = (weight_S[here] * (count_S[here] == 0)).sum() / mass
            assert float(table[n, 0].sigmoid()) == pytest.approx(float(empty), abs=0.01)
            shares = torch.zeros(3).index_add(0, token_K[here[row_K]], weight_S[row_K][here[row_K]])
            if shares.sum() > 0:
                found = table[n, 2:].softmax(-1)
                assert torch.allclose(found, shares / shares.sum(), atol=0.01)
            if cell[1] > 0:
                wrong = (weight_S[here] * (label_S[here] == 1)).sum() / mass
                assert float(table[n, 1].sigmoid()) == pytest.approx(float(wrong), abs=0.01)
            else:
                assert float(table[n, 1]) == 0


@pytest.mark.parametrize("normaliser", ["batch", "length"])
def test_the_parts_are_what_their_normaliser_says(normaliser: str) -> None:
    made = objective(text_normaliser=normaliser, time_weight="hazard")
    torch.manual_seed(0)
    model = OneFlowModel(FREE)
    with torch.no_grad():
        model.heads.count.weight.normal_()
        model.heads.delete.weight.normal_()
    examples = [
        made.corrupt(sample(text(list(range(2, 5 + 4 * n)))), np.random.default_rng(n)) for n in range(4)
    ]
    pack = collate(examples)
    out = made.loss(model, pack, made.normalisers(pack))
    assert set(out.parts) == {"tokens", "zero", "delete", "image"}
    assert float(sum(out.parts.values())) == pytest.approx(float(out.total.detach()), rel=1e-5)
    wanted, targets = dict.fromkeys(("tokens", "zero", "delete"), 0.0), 0
    for example in examples:
        alone = collate([example])
        with torch.no_grad():
            said = model(alone.inputs)
        pi, d = torch.sigmoid(said.pi_logit_S.double()), torch.sigmoid(said.delete_logit_S.double())
        weight = min(20.0, 1 / (1 - float(example.clock_C[0])))
        weight /= example.length if normaliser == "length" else 1
        label, empty = torch.from_numpy(example.spurious_S), alone.count_S == 0
        wanted["tokens"] += weight * float(said.nll_K.double().sum())
        wanted["zero"] -= weight * float(torch.where(empty, pi, 1 - pi).log().sum())
        wanted["delete"] -= weight * float(torch.where(label == 1, d, 1 - d).log()[label >= 0].sum())
        targets += example.text_targets
    for name, value in wanted.items():
        assert float(out.parts[name]) == pytest.approx(
            value / (targets if normaliser == "batch" else 4), rel=1e-4
        )


def test_every_parameter_has_a_gradient() -> None:
    model, made = OneFlowModel(FREE), objective()
    for document in (sample(image(), text([5, 6])), sample(text([5, 6], "prompt"), image("target"))):
        model.zero_grad()
        pack = collate([made.corrupt(document, np.random.default_rng(1))])
        made.loss(model, pack, made.normalisers(pack)).total.backward()
        assert all(p.grad is not None for p in model.parameters())
    assert (model.heads.delete is None) == (OneFlowModel(TINY).heads.delete is not None)


def test_heads_start_at_their_mean_and_unknown_ones_are_refused() -> None:
    heads = OneFlowModel(FREE).heads
    pi_logit, rate = heads.counts(torch.randn(5, TINY.width))
    assert torch.sigmoid(pi_logit).tolist() == pytest.approx([2 / 3] * 5, abs=1e-3)
    assert rate.tolist() == [1.0] * 5
    assert torch.sigmoid(heads.deletions(torch.randn(5, TINY.width))).tolist() == pytest.approx(
        [1 / 11] * 5, abs=1e-4
    )
    with pytest.raises(ValueError, match="counts 'freed' is none of: gated, plain, free"):
        replace(TINY, counts="freed")
