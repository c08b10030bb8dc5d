"""Documents as runs of tokens, for the kernel that takes them as they lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneflow_core.model.attention import AttentionPlan, attend, rectangles


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_runs_are_the_documents_where_all_see_all(lengths: list[int]) -> None:
    plan = AttentionPlan.build(np.array(lengths))
    assert plan.start_B1 is not None and plan.start_B1.dtype == torch.int32
    assert plan.start_B1.diff().tolist() == lengths and plan.longest == max(lengths)
    assert plan.document_T.bincount().tolist() == lengths


def test_there_are_none_where_order_or_a_prefix_hides_tokens() -> None:
    document_T, order_T = np.repeat([0, 1], [3, 4]), np.arange(7)
    assert AttentionPlan.build(np.array([3, 4]), order_T).start_B1 is None
    copy_T = np.array([-1, 0, 0, -1, -1, 0, 0])
    assert AttentionPlan.of_runs(document_T, copy_T).start_B1 is None
    assert AttentionPlan.of_runs(document_T, np.zeros(7, np.int64)).start_B1 is not None


@pytest.mark.gpu
def test_the_kernel_gives_what_rectangles_give() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("no GPU with FlashAttention")
    plan, made = AttentionPlan.build(np.array([5, 130, 64, 1])), []
    plan.query_Q, plan.restore_T, plan.start_B1 = (
        x.cuda() for x in (plan.query_Q, plan.restore_T, plan.start_B1)
    )
    for bucket in plan.buckets:
        bucket.mask = None if bucket.mask is None else bucket.mask.cuda()
    for function in (attend, rectangles):
        torch.manual_seed(0)
        q, k, v = (torch.randn(200, heads, 64, device="cuda").bfloat16() for heads in (8, 2, 2))
        given = [x.requires_grad_() for x in (q, k, v)]
        out = function(*given, plan)
        made.append([out, *torch.autograd.grad(out.float().square().sum(), given)])
    for ours, theirs in zip(*made, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)


def test_in_half_precision_on_a_cpu_padding_does_not_show() -> None:
    """Documents that share a padded bucket come out as they do alone, in all but one of thousands of last bits."""
    lengths, rng = np.array([40, 39, 39, 12]), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(int(lengths.sum()), heads, 32, generator=rng).bfloat16() for heads in (4, 2, 2))
    together = rectangles(q, k, v, AttentionPlan.build(lengths))
    exact = rectangles(q.double(), k.double(), v.double(), AttentionPlan.build(lengths))
    assert together.dtype == torch.bfloat16
    torch.testing.assert_close(together, exact.bfloat16(), atol=0, rtol=2**-7)
    parts = [x.split(lengths.tolist()) for x in (q, k, v)]
    alone = [
        rectangles(*mine, AttentionPlan.build(np.array([n])))
        for *mine, n in zip(*parts, lengths, strict=True)
    ]
    assert float((torch.cat(alone) != together).float().mean()) < 1e-3
