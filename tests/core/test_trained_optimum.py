"""A network trained by the objective says the closed form of METHOD 7.1 at every state of a small language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oneflow_core.flows.insertion import Counts
from oneflow_core.model import ModelConfig, OneFlowModel
from oneflow_core.packing import collate
from tests.core.corruptions import objective
from tests.core.toy_language import VOCABULARY, Ids, Law, Optimum, corruptions, drawn, least_loss, optima
from tests.core.words import TINY

STEPS = 500
TIMES = (0.1, 0.5, 0.85)
"""Text times that a network is told, each as often as the others."""
SELDOM = 0.002
"""Of states that are seen less often only the mean error counts."""


def trained(config: ModelConfig, laws: Mapping[float, Law]) -> tuple[OneFlowModel, float]:
    """A network trained on the expected loss over all corruptions, their chances as weights; and its last loss."""
    torch.manual_seed(0)
    model, made, examples = OneFlowModel(config), objective(config), drawn()[1]
    pack = collate(
        [
            replace(examples[key], clock_C=np.array([time]), weight_C=np.array([p / len(laws)]))
            for time, law in laws.items()
            for key, p in law.items()
        ]
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = made.loss(model, pack, {"text": 1.0, "image": 1.0}).total
        loss.backward()
        optimiser.step()
        pace.step()
    return model.eval(), float(loss.detach())


def heads_at(model: OneFlowModel, states: list[Ids], time: float) -> list[NDArray[np.float64]]:
    """pi, the total rate and Q of all slots of these states, in order."""
    examples = {state: example for (state, _), example in drawn()[1].items()}
    inputs = collate([replace(examples[s], clock_C=np.array([time])) for s in states]).inputs
    whole = {"logit_slot_R": torch.arange(len(inputs.slot_S)), "pair_row_K": None, "pair_token_K": None}
    with torch.no_grad():
        out = model(replace(inputs, **whole))
    assert out.logits_RV is not None
    pi_S = torch.sigmoid(out.pi_logit_S)
    return [x.double().numpy() for x in (pi_S, (1 - pi_S) * out.rate_S, out.logits_RV.softmax(-1))]


def errors(
    model: OneFlowModel, best: Mapping[Ids, Optimum], time: float, counts: Counts
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|found - closed form| of pi, the total rate and Q (as often as anything is missing), [slots, 3]; chances."""
    pi, total, tokens = (
        np.concatenate([getattr(o, name) for o in best.values()]) for name in ("pi_S", "total_S", "tokens_SV")
    )
    found_pi, found_total, found_q = heads_at(model, list(best), time)
    wanted_pi = np.exp(-total) if counts == "plain" else pi
    off_q = np.nan_to_num(np.abs(found_q - tokens)).max(1) * (1 - pi)
    chance = np.concatenate([np.full(len(state) + 1, o.chance) for state, o in best.items()])
    return np.stack([np.abs(found_pi - wanted_pi), np.abs(found_total - total), off_q], 1), chance


@pytest.mark.parametrize(("counts", "told"), [("gated", False), ("plain", False), ("gated", True)])
def test_a_network_reaches_the_closed_form_at_every_state(counts: Counts, told: bool) -> None:
    """Told the time, the optimum at that time; blind to it, the one under t ~ U[0, 1]."""
    config = replace(TINY, vocab_size=VOCABULARY, counts=counts, text_time=told)
    laws = {time: corruptions(time) for time in TIMES} if told else {0.5: corruptions()}
    model, loss = trained(config, laws)
    least = np.mean([least_loss(law, counts) for law in laws.values()])
    assert least - 1e-4 < loss < least + 1e-3
    for time, law in laws.items():
        off, chance = errors(model, optima(law), time, counts)
        assert (off[chance > SELDOM].max(0) < [0.01, 0.08, 0.01]).all()
        assert (chance @ off < [1e-3, 5e-3, 1e-3]).all()
