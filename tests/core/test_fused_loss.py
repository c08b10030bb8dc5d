"""The fused loss in float64 against one written out from whole logits, one document and one slot at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from oneflow_core.data.shard import Sample
from oneflow_core.flows.insertion import Counts, insertion_terms
from oneflow_core.model import ModelConfig, OneFlowModel, heads
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example, Pack, collate
from tests.core.corruptions import corrupt, objective
from tests.core.words import TINY, image, sample, text

MIXTURE = TaskMixture(concurrent=0.4, text_to_image=0.5, prompt_dropout=0.2, story_prompt=0.5)
IMAGE_WEIGHT = 1.5


def documents() -> list[Sample]:
    kinds = [
        [image(), text([5, 6, 6, 8])],
        [text([9, 10]), image(), text([11, 12, 13, 11]), image()],
        [image("prompt"), text([3, 4], "prompt"), text([5, 5, 7], "target")],
        [text(list(range(2, 20)))],
        [text([2])],
    ]
    return [sample(*kinds[i % len(kinds)], seed=i) for i in range(15)]


def shaken(config: ModelConfig) -> OneFlowModel:
    """A network in float64 all of whose parameters matter."""
    torch.manual_seed(0)
    model = OneFlowModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def doubled(pack: Pack) -> Pack:
    """The same pack, its numbers for the image loss in float64."""
    inputs = replace(pack.inputs, time_N=pack.inputs.time_N.double(), noisy_ND=pack.inputs.noisy_ND.double())
    return replace(pack, inputs=inputs, clean_ND=pack.clean_ND.double(), noise_ND=pack.noise_ND.double())


def written_out(model: OneFlowModel, example: Example) -> tuple[Tensor, Tensor]:
    """(text, image) loss of one document alone, before their normalisers: METHOD 1.3 and 2, term by term."""
    pack = doubled(collate([example]))
    slots = len(example.count_S)
    every = {"logit_slot_R": torch.arange(slots), "pair_row_K": None, "pair_token_K": None}
    out = model(replace(pack.inputs, **every))
    assert out.logits_RV is not None
    text_loss, image_loss = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for slot in range(slots):
        bag = [t for s, t in zip(example.pair_slot_K, example.pair_token_K, strict=True) if s == slot]
        pi, rate = torch.sigmoid(out.pi_logit_S[slot]), out.rate_S[slot]
        loss = -sum(torch.log_softmax(out.logits_RV[slot], 0)[int(t)] for t in bag)
        if model.config.counts == "plain":
            total = (1 - pi) * rate
            loss = loss + total - len(bag) * total.log()
        elif bag:
            loss = loss - (1 - pi).log() + rate - len(bag) * rate.log()
        else:
            loss = loss - pi.log()
        text_loss = text_loss + float(example.weight_C[0]) * loss
    for patch, t in enumerate(pack.inputs.time_N):
        if t < 1:
            error = out.image_ND[patch] - pack.clean_ND[patch]
            image_loss = image_loss + (error / max(1 - float(t), TINY.clean_eps)).square().mean()
    return text_loss, image_loss


@pytest.mark.parametrize("rows", [1, 3, 4096])
@pytest.mark.parametrize(("counts", "text_time"), [("gated", False), ("plain", False), ("gated", True)])
def test_loss_and_gradients_are_those_of_the_loss_written_out(
    counts: Counts, text_time: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, counts=counts, text_time=text_time)
    model = shaken(config)
    made = objective(config, mixture=MIXTURE, image_weight=IMAGE_WEIGHT)
    examples = [
        replace(corrupt(made, d, seed), weight_C=np.array([0.5 + seed / 8]))
        for seed, d in enumerate(documents())
    ]
    pack = doubled(collate(examples))
    monkeypatch.setattr(heads, "LOGIT_ROWS", rows)
    assert len(pack.inputs.logit_slot_R) > 3 and {bool(e.clock_C[0] > 1) for e in examples} == {True, False}
    fused = made.loss(model, pack, made.normalisers(pack)).total
    parts = [written_out(model, e) for e in examples]
    targets, flowing = sum(e.text_targets for e in examples), sum(int(e.flow_N.sum()) for e in examples)
    plain = sum(t for t, _ in parts) / targets + IMAGE_WEIGHT * sum(i for _, i in parts) / flowing
    assert isinstance(plain, Tensor) and fused.dtype == plain.dtype == torch.float64
    torch.testing.assert_close(fused, plain, atol=1e-12, rtol=1e-12)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(fused, list(parameters.values()))
    theirs = torch.autograd.grad(plain, list(parameters.values()))
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        assert a.abs().max() > 0, name
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_a_plain_rate_of_hundreds_keeps_its_gradient() -> None:
    """A long text at t = 0 misses all its tokens in one gap; of a rate L, d(L - k log L)/dL = 1 - k / L."""
    model = OneFlowModel(replace(TINY, counts="plain"))
    bias = model.heads.count.bias
    for rate in (30.0, 90.0, 400.0):
        with torch.no_grad():
            bias.fill_(rate)
        pi_logit, nonzero = model.heads.counts(torch.zeros(1, TINY.width))
        terms = insertion_terms(pi_logit, nonzero, torch.tensor([300]), torch.zeros(0), counts="plain")
        (gradient,) = torch.autograd.grad(terms.rate, bias)
        assert float(gradient) == pytest.approx(1 - 300 / rate, rel=1e-4)
        assert float(pi_logit.detach()) == pytest.approx(-rate, rel=1e-5)
