"""The network against dense attention and one document at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oneflow_core.model import PRESETS, AttentionPlan, ModelConfig, ModelInputs, OneFlowModel, heads
from oneflow_core.model.attention import WASTE, attend, to_rounded
from oneflow_core.model.backbone import Backbone
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.packing import collate
from tests.core.words import TINY, WordTokenizer, image, sample, text


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12))
@settings(deadline=None)
def test_packed_attention_equals_dense_attention_with_a_mask(lengths: list[int]) -> None:
    plan = AttentionPlan.build(np.array(lengths))
    total = sum(lengths)
    torch.manual_seed(total)
    q, k, v = torch.randn(total, 4, 8), torch.randn(total, 2, 8), torch.randn(total, 2, 8)
    same = plan.document_T[:, None] == plan.document_T
    k4, v4 = (x.repeat_interleave(2, dim=1).transpose(0, 1) for x in (k, v))
    scores = (q.transpose(0, 1) @ k4.transpose(1, 2)) / 8**0.5
    dense = scores.masked_fill(~same, -torch.inf).softmax(-1) @ v4
    assert torch.allclose(attend(q, k, v, plan), dense.transpose(0, 1), atol=1e-5)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_plans_hold_every_token_once_and_waste_little(lengths: list[int]) -> None:
    plan = AttentionPlan.build(np.array(lengths))
    assert plan.key_P is None
    assert torch.equal(plan.query_Q[plan.restore_T], torch.arange(sum(lengths)))
    assert len(plan.query_Q) <= sum(lengths) / (1 - WASTE) + 1e-6


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=6))
@settings(deadline=None)
def test_tokens_see_their_document_up_to_their_own_order(orders: list[list[int]]) -> None:
    order = torch.tensor([o for document in orders for o in document])
    plan = AttentionPlan.build(np.array([len(o) for o in orders]), order.numpy())
    torch.manual_seed(len(order))
    q, k, v = (torch.randn(len(order), 2, 8, requires_grad=True) for _ in range(3))
    seen = (plan.document_T[:, None] == plan.document_T) & (order <= order[:, None])
    scores = (q.transpose(0, 1) @ k.transpose(0, 1).transpose(1, 2)) / 8**0.5
    dense = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.transpose(0, 1)).transpose(0, 1)
    ours = attend(q, k, v, plan)
    assert torch.allclose(ours, dense, atol=1e-5)
    weight = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((dense * weight).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, atol=1e-5)


def _model(config: ModelConfig = TINY) -> OneFlowModel:
    torch.manual_seed(0)
    model = OneFlowModel(config)
    for parameter in model.parameters():
        if parameter.std() == 0:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def _examples(count: int) -> list:
    objective = OneFlowObjective(ObjectiveConfig(), TINY, WordTokenizer())
    rng = np.random.default_rng(3)
    kinds = [
        [image(), text([5, 6, 7, 8])],
        [text([9, 10]), image(), text([11, 12, 13]), image()],
        [image("prompt"), text([3, 4], "prompt"), text([5], "target")],
        [text(list(range(2, 20)))],
    ]
    return [objective.corrupt(sample(*kinds[i % 4], seed=i), rng) for i in range(count)]


def test_the_texts_time_changes_nothing_at_the_start_and_something_later() -> None:
    torch.manual_seed(0)
    blind = _model()
    told = OneFlowModel(replace(TINY, text_time=True)).eval()
    missing, extra = told.load_state_dict(blind.state_dict(), strict=False)
    assert not extra and all("modulation" in name or "backbone.time" in name for name in missing)
    inputs = collate(_examples(8)).inputs
    for a, b in zip(_outputs(blind, inputs), _outputs(told, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for block in told.backbone.children_blocks():
            assert block.modulation is not None
            block.modulation.project.weight.normal_(std=0.1)
    before = _outputs(told, inputs)
    inputs.text_time_T = (inputs.text_time_T + 0.3) % 1
    assert all(
        not torch.allclose(a, b, atol=1e-4) for a, b in zip(before, _outputs(told, inputs), strict=True)
    )


def _outputs(model: OneFlowModel, inputs: ModelInputs) -> list[torch.Tensor]:
    with torch.no_grad():
        out = model(inputs)
    assert out.nll_K is not None
    return [out.pi_logit_S, out.rate_S, out.nll_K, out.image_ND]


@pytest.mark.parametrize("text_time", [False, True])
@pytest.mark.parametrize("count", [8, 0])
def test_inference_leaves_out_of_the_last_block_what_nobody_reads(text_time: bool, count: int) -> None:
    config = replace(TINY, text_time=text_time)
    model, inputs = _model(config), collate(_examples(8)).inputs
    inputs.slot_S, inputs.logit_slot_R = inputs.slot_S[:count], torch.arange(count)
    inputs.pair_row_K = None
    with torch.no_grad():
        whole = model(inputs)
    seen: list[int] = []
    last = list(model.backbone.children_blocks())[-1]
    last.ffn.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    with torch.inference_mode():
        read = model(inputs)
    rounded = to_rounded(torch.arange(count + len(inputs.patch_N)))
    assert seen == [len(rounded)] and seen[0] < len(inputs.token_T)
    for name in ("pi_logit_S", "rate_S", "logits_RV", "image_ND"):
        torch.testing.assert_close(getattr(read, name), getattr(whole, name), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("text_time", [False, True])
def test_a_document_sees_neither_its_neighbours_in_a_pack_nor_their_time(text_time: bool) -> None:
    torch.manual_seed(0)
    model = OneFlowModel(replace(TINY, text_time=text_time)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    examples = _examples(8)
    together = collate(examples).inputs
    wanted = [min(1.0, e.clock_C[0]) for e in examples for _ in range(e.length)]
    assert together.text_time_T.tolist() == pytest.approx(wanted)
    alone = [_outputs(model, collate([e]).inputs) for e in examples]
    for number, joined in enumerate(_outputs(model, together)):
        torch.testing.assert_close(joined, torch.cat([a[number] for a in alone]), atol=1e-5, rtol=1e-4)


def test_chunked_token_loss_equals_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    hidden = torch.randn(23, TINY.width, requires_grad=True)
    rows = torch.arange(23).repeat_interleave(torch.arange(23) % 3 + 1)
    tokens = torch.randint(0, TINY.vocab_size, (len(rows),))
    reference = nn.functional.cross_entropy(model.heads.tokens(hidden)[rows], tokens, reduction="none")
    (expected,) = torch.autograd.grad(reference.sum(), hidden)
    monkeypatch.setattr(heads, "LOGIT_ROWS", 5)
    chunked = model.heads.nll(hidden, rows, tokens)
    (gradient,) = torch.autograd.grad(chunked.sum(), hidden)
    assert torch.allclose(chunked, reference, atol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_every_parameter_has_a_gradient_even_without_images() -> None:
    model = _model()
    objective = OneFlowObjective(ObjectiveConfig(), TINY, WordTokenizer())
    pack = collate([objective.corrupt(sample(text([5, 6, 7])), np.random.default_rng(0))])
    objective.loss(model, pack, objective.normalisers(pack)).total.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_presets_have_their_sizes_and_config_round_trips() -> None:
    sizes = {}
    for name, config in PRESETS.items():
        with torch.device("meta"):
            model = OneFlowModel.__new__(OneFlowModel)
            nn.Module.__init__(model)
            sizes[name] = sum(p.numel() for p in Backbone(config).parameters())
        assert ModelConfig.from_json(config.to_json()) == config
    # Llama 3.2 1B, 3.2 3B and 3.1 8B without embeddings.
    assert sizes["1b"] == pytest.approx(0.973e9, rel=0.01)
    assert sizes["3b"] == pytest.approx(2.82e9, rel=0.01)
    assert sizes["8b"] == pytest.approx(6.98e9, rel=0.01)


def test_bad_dimensions_and_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="kv_heads must divide heads"):
        ModelConfig(width=32, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match="unknown field 'depth'"):
        ModelConfig.from_json({"depth": 3})
