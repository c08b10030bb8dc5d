"""The loss of (row, token) pairs against torch's cross entropy, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.model import pair_nll as module
from oneflow_core.model.pair_nll import pair_nll


@given(rows=st.integers(0, 9), vocabulary=st.integers(1, 12), seed=st.integers(0, 99), held=st.integers(1, 4))
@settings(deadline=None)
def test_values_and_gradients_are_those_of_cross_entropy(
    rows: int, vocabulary: int, seed: int, held: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean_RV = torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * 5
    bag_R = torch.randint(0, 4, (rows,), generator=generator)
    row_K = torch.arange(rows).repeat_interleave(bag_R)
    token_K = torch.randint(0, vocabulary, (len(row_K),), generator=generator)
    weight_K = torch.randn(len(row_K), generator=generator, dtype=torch.float64)
    wanted_RV, found_RV = clean_RV.clone().requires_grad_(), clean_RV.clone().requires_grad_()
    wanted_K = F.cross_entropy(wanted_RV[row_K], token_K, reduction="none")
    (wanted_K * weight_K).sum().backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", held)
        found_K = pair_nll(found_RV * 1, row_K, token_K)
    (found_K * weight_K).sum().backward()
    torch.testing.assert_close(found_K, wanted_K)
    torch.testing.assert_close(found_RV.grad, wanted_RV.grad)


def test_logits_far_from_zero_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    nll = pair_nll(logits * 1, torch.tensor([0, 0]), torch.tensor([0, 1]))
    nll.sum().backward()
    assert nll.tolist() == [0.0, 2e4]
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_a_second_backward_is_refused_not_wrong() -> None:
    nll = pair_nll(torch.randn(3, 4, requires_grad=True) * 1, torch.tensor([0, 2]), torch.tensor([1, 1]))
    nll.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nll.sum().backward()
