"""Losses by time: against plain loops over rows, on real packs of every objective's kind of rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneflow_core.metrics.time_bins import BINS, CENTRES, by_time, loss_by_time
from oneflow_core.model import OneFlowModel
from oneflow_core.objectives import LossOutput, ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Pack, collate
from tests.core.words import TINY, WordTokenizer, image, sample, text

ROW = st.tuples(st.floats(0, 2, width=32), st.floats(-5, 50, width=32), st.sampled_from([0.0, 1.0, 0.5]))


def looped(rows: list[tuple[float, float, float]]) -> np.ndarray:
    """Sums of weights and weighed values, one row after the other."""
    sums = np.zeros((2, BINS))
    for time, value, weight in rows:
        place = next(i for i in range(BINS) if i == BINS - 1 or np.float32(time) * BINS < i + 1)
        sums[:, place] += weight, weight * value
    return sums


@given(st.lists(ROW, max_size=40))
def test_sums_by_time_are_those_of_a_loop(rows: list[tuple[float, float, float]]) -> None:
    columns = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)
    found = by_time(columns[:, 0], columns[:, 1], columns[:, 2]).numpy()
    np.testing.assert_allclose(found, looped(rows), atol=1e-9)
    assert pytest.approx((0.1, 0.3, 0.5, 0.7, 0.9)) == CENTRES


def scored() -> tuple[Pack, LossOutput]:
    """A pack of pairs and stories that an untrained network has answered for."""
    mixture = TaskMixture(concurrent=0.5, text_to_image=0.5, prompt_dropout=0.1)
    objective = OneFlowObjective(ObjectiveConfig(mixture=mixture), TINY, WordTokenizer())
    rng = np.random.default_rng(0)
    ids = [rng.integers(2, 40, 12).tolist() for _ in range(24)]
    segments = [(text(i), image(), text(j)) if n % 3 == 0 else (text(i), image()) for n, (i, j) in
                enumerate(zip(ids, reversed(ids), strict=True))]  # fmt: skip
    examples = [objective.corrupt(sample(*s, seed=n), rng) for n, s in enumerate(segments)]
    torch.manual_seed(0)
    model = OneFlowModel(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    pack = collate(examples)
    return pack, objective.loss(model, pack, objective.normalisers(pack))


def test_the_bins_of_a_pack_add_up_to_its_loss_and_are_those_of_a_loop() -> None:
    pack, out = scored()
    found = loss_by_time(pack, out)
    nll = [(t, v, 1.0) for t, v in zip(pack.clock_K.tolist(), out.nll_K.tolist(), strict=True)]
    np.testing.assert_allclose(found["text_ce"].numpy(), looped(nll), rtol=1e-6)
    assert found["text_ce"][1].sum().item() == pytest.approx(
        out.parts["tokens"].item() * pack.text_targets, rel=1e-5
    )
    assert out.rate_S is not None
    regrets = []
    for clock, k, rate in zip(pack.clock_S.tolist(), pack.count_S.tolist(), out.rate_S.tolist(), strict=True):
        if k:
            regrets.append((clock, (rate - k * math.log(rate)) - (k - k * math.log(k)), 1.0))
    np.testing.assert_allclose(found["rate_regret"].numpy(), looped(regrets), rtol=1e-5)
    assert found["rate_regret"][1].sum().item() == pytest.approx(
        out.parts["rate_regret"].item() * pack.text_targets, rel=1e-4
    )
    flow = zip(pack.inputs.time_N.tolist(), out.error_N.tolist(), pack.flow_N.tolist(), strict=True)
    np.testing.assert_allclose(
        found["image_mse"].numpy(), looped([(t, e, float(f)) for t, e, f in flow]), rtol=1e-6
    )
    assert not pack.flow_N.all(), "an image that is done must be among them"
    assert found["image_mse"][1].sum().item() == pytest.approx(
        out.parts["image"].item() * int(pack.flow_N.sum()), rel=1e-5
    )


def test_where_texts_have_no_time_or_counts_are_not_predicted_nothing_is_told_of_them() -> None:
    pack, out = scored()
    assert set(loss_by_time(pack, out, text=False)) == {"image_mse"}
    assert set(loss_by_time(pack, replace(out, rate_S=None))) == {"image_mse", "text_ce"}
