"""Checkpointed and compiled blocks give what plain ones give, keep less, and rename nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_core.model import OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.packing import Pack, collate
from tests.core.words import TINY, WordTokenizer, image, sample, text
from workflows.bench.flops import flop_counter
from workflows.training import blocks
from workflows.training.config import ComputeSettings
from workflows.training.parallel import Worker, shard, whole

CONFIG = replace(TINY, text_time=True)


def packs() -> list[Pack]:
    """Two of different lengths and numbers of buckets."""
    objective, rng = OneFlowObjective(ObjectiveConfig(), CONFIG, WordTokenizer()), np.random.default_rng(0)
    documents = [sample(text([3, 4, 5]), image(), seed=1), sample(text([5, 6, 7, 8])), sample(text([6]))]
    return [collate([objective.corrupt(d, rng) for d in part]) for part in (documents, documents[:1])]


def built(**compute: object) -> tuple[OneFlowModel, ComputeSettings]:
    torch.manual_seed(0)
    model = OneFlowModel(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, ComputeSettings(workers=1, device="cpu", shard_min_mb=0, **compute)


def gradients(alone: Worker, **compute: object) -> tuple[dict[str, torch.Tensor], int]:
    """Summed over the packs, and the most bytes that autograd kept for a pack of any block's forward pass."""
    model, settings = built(**compute)
    names = list(model.state_dict())
    shard(model, settings, alone)
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()] == names
    objective, kept = OneFlowObjective(ObjectiveConfig(), CONFIG, WordTokenizer()), {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for pack in packs():
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = objective.loss(model, pack, {"text": 8.0, "image": 20.0}).total
        loss.backward()
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}, sum(
        kept.values()
    )


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("reshard", [False, True])
def test_checkpointing_gives_the_same_gradients_bit_for_bit_and_keeps_less(
    alone: Worker, mode: str, reshard: bool
) -> None:
    expected, most = gradients(alone)
    made, kept = gradients(alone, activation_checkpointing=mode, reshard_after_forward=reshard)
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], gradient) for name, gradient in expected.items())
    assert kept < most


def test_full_runs_blocks_twice_and_selective_repeats_no_product(alone: Worker) -> None:
    products = {}
    for mode in ("none", "selective", "full"):
        model, settings = built(activation_checkpointing=mode)
        shard(model, settings, alone)
        objective = OneFlowObjective(ObjectiveConfig(), CONFIG, WordTokenizer())
        with flop_counter() as counter:
            objective.loss(model, packs()[0], {"text": 8.0, "image": 20.0}).total.backward()
        products[mode] = counter.get_total_flops()
    assert products["none"] == products["selective"] < products["full"] < products["none"] * 4 / 3


def test_compiled_blocks_give_the_same_and_compile_once_for_all_lengths(
    alone: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the code that inductor writes, which takes a minute."""
    monkeypatch.setattr(blocks, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config, objective = replace(TINY, layers=1), OneFlowObjective(ObjectiveConfig(), TINY, WordTokenizer())
    made, compiled = {}, []
    for compile in (True, False):
        torch.manual_seed(0)
        model = OneFlowModel(config)
        shard(model, ComputeSettings(workers=1, device="cpu", compile=compile), alone)
        for pack in packs():
            objective.loss(model, pack, {"text": 8.0, "image": 20.0}).total.backward()
            compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        made[compile] = {name: whole(p.grad) for name, p in model.named_parameters()}
    assert 0 < compiled[0] == compiled[1]
    for name, gradient in made[False].items():
        torch.testing.assert_close(made[True][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
