"""What inference does otherwise than training: tokens in the order of attention, products by oneDNN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oneflow_core.model import AttentionPlan, ModelConfig, OneFlowModel
from oneflow_core.model.attention import attend, to_rounded
from oneflow_core.model.backbone import Backbone
from oneflow_core.model.onednn import lay_out
from tests.core.words import TINY

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def _backbone(config: ModelConfig) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(config).eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    return backbone


@given(LENGTHS, st.data(), st.booleans(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_tokens_in_the_order_of_attention_become_what_they_are_in_their_own(
    lengths: list[int], data: st.DataObject, text_time: bool, ordered: bool, sharp: bool
) -> None:
    total = sum(lengths)
    order = (
        np.array(data.draw(st.lists(st.integers(0, 3), min_size=total, max_size=total))) if ordered else None
    )
    read = data.draw(st.none() | st.lists(st.integers(0, total - 1), max_size=total, unique=True))
    backbone = _backbone(replace(TINY, text_time=text_time))
    plan = AttentionPlan.build(np.array(lengths), order)
    if sharp:
        plan.sharpness_T = torch.rand(total) + 0.5
    position_T = torch.cat([torch.arange(n) for n in lengths])
    time_T = torch.rand(len(lengths)).repeat_interleave(torch.tensor(lengths))
    given = torch.randn(total, TINY.width), position_T, plan, time_T
    # With gradients every layer gathers.
    trained = backbone(*given).detach()
    read_R = None if read is None else torch.tensor(read, dtype=torch.int64)
    with torch.inference_mode():
        inferred = backbone(*given, read_R=read_R)
    wanted = trained if read_R is None else trained[read_R]
    torch.testing.assert_close(inferred, wanted, atol=2e-5, rtol=1e-4)


def test_keys_that_are_no_queries_are_not_put_in_order() -> None:
    prefixed = AttentionPlan.of_runs(np.zeros(5, np.int64), np.array([-1, -1, 0, 0, 1]))
    with pytest.raises(ValueError, match="gather them layer by layer"):
        prefixed.in_order()


@given(st.integers(0, 200_000))
def test_lengths_are_rounded_up_by_little(rows: int) -> None:
    index = to_rounded(torch.ones(rows, dtype=torch.int64))
    assert len(index) - rows < max(8, rows / 31)
    assert index.sum() == rows and (index[:rows] == 1).all()


def test_few_lengths_are_left_of_many() -> None:
    lengths = {len(to_rounded(torch.zeros(rows, dtype=torch.int64))) for rows in range(1, 8193)}
    assert len(lengths) <= 200, "oneDNN keeps 1024 pieces of code; a pass takes five for each length"


def _model(config: ModelConfig) -> OneFlowModel:
    torch.manual_seed(0)
    return OneFlowModel(config).eval()


@pytest.mark.parametrize("rows", [1, 7, 8, 45, 96, 300])
@pytest.mark.parametrize("objective", ["oneflow", "masked"])
def test_onednn_says_what_torchs_own_products_say(objective: str, rows: int) -> None:
    config = replace(TINY, objective=objective, width=160, heads=5, kv_heads=5, ffn=432)
    plain, model = _model(config), _model(config)
    lay_out(model)
    assert model.backbone.blocks[0].attention.qkv.weight.is_mkldnn
    given = torch.randn(rows, 160), torch.arange(rows), AttentionPlan.build(np.array([rows]))
    with torch.inference_mode():
        theirs, ours = plain.backbone(*given), model.backbone(*given)
        exact = plain.double().backbone(given[0].double(), *given[1:])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    error, usual = ((x - exact).abs().max() for x in (ours, theirs))
    assert error <= 4 * usual + 1e-6


def test_the_weights_are_those_that_were_laid_out() -> None:
    plain, model = _model(TINY), _model(TINY)
    lay_out(model)
    held, before = model.state_dict(), plain.state_dict()
    assert list(held) == list(before)
    assert all(torch.equal(held[name], before[name]) for name in before)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (replace(TINY, objective="transfusion"), torch.float32),
        (replace(TINY, prompt_attention="prefix"), torch.float32),
        (TINY, torch.bfloat16),
        (TINY, torch.float64),
    ],
)
def test_what_has_a_cache_or_another_precision_stays_with_torch(
    config: ModelConfig, dtype: torch.dtype
) -> None:
    model = _model(config).to(dtype)
    lay_out(model)
    assert isinstance(model.backbone.blocks[0].attention.qkv, nn.Linear)


@given(LENGTHS)
@settings(deadline=None, max_examples=30)
def test_rows_beyond_the_queries_are_left_alone(lengths: list[int]) -> None:
    plan, token_Q = AttentionPlan.build(np.array(lengths)).in_order()
    q, k, v = (torch.randn(sum(lengths), 2, 8)[token_Q] for _ in range(3))
    with torch.inference_mode():
        before = attend(q, k, v, plan)
        beyond = len(plan.query_Q)
        for x in (q, k, v):
            x[beyond:] += 100.0
        after = attend(q, k, v, plan)
    assert torch.equal(before[plan.restore_T], after[plan.restore_T])


def test_a_network_laid_out_says_that_it_cannot_be_trained() -> None:
    model = _model(TINY)
    lay_out(model)
    lay_out(model)
    given = (
        torch.randn(8, TINY.width, requires_grad=True),
        torch.arange(8),
        AttentionPlan.build(np.array([8])),
    )
    with pytest.raises(RuntimeError, match=r"take one to train from oneflow_core\.model_directory\.load"):
        model.backbone(*given)
    with torch.no_grad():
        assert model.backbone(*given).isfinite().all()
