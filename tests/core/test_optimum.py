"""Where the loss is least: the closed form of METHOD 7.1, lambda*, Q*, pi*, on a language that can be enumerated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from torch.nn import functional as F

from oneflow_core.flows.insertion import Counts, insertion_terms
from tests.core.toy_language import (
    DRAWS,
    LANGUAGE,
    VOCABULARY,
    Bags,
    Ids,
    Law,
    Optimum,
    corruptions,
    cut,
    drawn,
    least_loss,
    optima,
)


def test_the_closed_form_in_a_case_done_by_hand() -> None:
    """State (2) is left of (2), (2, 2), (2, 3), (3, 2, 2) and (2, 3, 2, 4), some of them in two ways."""
    law = corruptions()
    assert sum(law.values()) == pytest.approx(1)
    assert cut((2, 2, 3), (False, True, False)) == ((2,), ((2,), (3,)))
    p = {whole: share / (len(whole) + 1) for whole, share in LANGUAGE.items()}
    two, three, four = p[(2, 2)] / 2, p[(3, 2, 2)] / 3, p[(2, 3, 2, 4)] / 4
    chance = p[(2,)] + 2 * two + p[(2, 3)] / 2 + 2 * three + 2 * four
    before = {2: two + three + four, 3: 2 * three + four}
    found = optima(law)[(2,)]
    assert found.chance == pytest.approx(chance)
    assert found.total_S[0] == pytest.approx(sum(before.values()) / chance)
    assert found.tokens_SV[0, 2] == pytest.approx(before[2] / sum(before.values()))
    assert found.pi_S[0] == pytest.approx((p[(2,)] + two + p[(2, 3)] / 2 + four) / chance)


def test_the_objective_corrupts_as_often_as_the_enumeration_says() -> None:
    seen, law = drawn()[0], corruptions()
    assert set(seen) == set(law)
    misfit = sum((seen[key] - DRAWS * p) ** 2 / (DRAWS * p) for key, p in law.items())
    assert chi2.sf(misfit, len(law) - 1) > 0.01


@dataclass
class Table:
    """A free parameter for each number that the heads put out, in place of a network: one row a state and slot."""

    pi_logit_R: Tensor
    raw_R: Tensor
    logits_RV: Tensor

    @classmethod
    def of(cls, rows: int) -> Table:
        """All zero, in float64."""
        shapes = (rows,), (rows,), (rows, VOCABULARY)
        return cls(*(torch.zeros(*s, dtype=torch.float64, requires_grad=True) for s in shapes))

    def loss(self, first: int, bags: Bags, counts: Counts) -> Tensor:
        """Of a state whose slots begin at row `first`, with these bags missing."""
        rows = slice(first, first + len(bags))
        raw = F.softplus(self.raw_R[rows])
        pi_logit, rate = self.pi_logit_R[rows], 1 + raw
        if counts == "plain":
            pi_logit, rate = -raw.expm1().log(), raw / -torch.expm1(-raw)
        log_q = self.logits_RV[rows].log_softmax(-1)
        nll = [-log_q[slot, token] for slot, bag in enumerate(bags) for token in bag]
        missing = torch.tensor([len(bag) for bag in bags])
        nll_K = torch.stack(nll) if nll else raw[:0]
        terms = insertion_terms(pi_logit, rate, missing, nll_K, counts=counts)
        return terms.tokens + terms.rate + terms.zero


def minimised(law: Law, best: dict[Ids, Optimum], counts: Counts) -> tuple[Table, float]:
    """The table at which the expected loss of each state is least, and the loss over all states."""
    starts = np.cumsum([0, *(len(state) + 1 for state in best)]).tolist()
    first, table = dict(zip(best, starts, strict=False)), Table.of(starts[-1])
    parameters = [table.pi_logit_R, table.raw_R, table.logits_RV]
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=120, history_size=50, line_search_fn="strong_wolfe", tolerance_change=0
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = expected({s: p.chance for s, p in best.items()})
        loss.backward()
        return loss

    def expected(unit: dict[Ids, float]) -> Tensor:
        each = [p / unit[s] * table.loss(first[s], bags, counts) for (s, bags), p in law.items()]
        return torch.stack(each).sum()

    optimiser.step(closure)
    return table, float(expected(dict.fromkeys(best, 1.0)).detach())


@pytest.mark.parametrize("counts", ["gated", "plain"])
@pytest.mark.parametrize("time", [None, 0.35])
def test_free_heads_converge_to_the_closed_form(time: float | None, counts: Counts) -> None:
    law = corruptions(time)
    best = optima(law)
    table, loss = minimised(law, best, counts)
    assert loss == pytest.approx(least_loss(law, counts), abs=1e-4)
    pi, total, nonzero, tokens = (
        np.concatenate([getattr(o, name) for o in best.values()])
        for name in ("pi_S", "total_S", "nonzero_S", "tokens_SV")
    )
    rate, some = F.softplus(table.raw_R).detach().numpy(), total > 0
    if counts == "plain":
        assert rate == pytest.approx(total, abs=1e-4)
    else:
        assert torch.sigmoid(table.pi_logit_R).detach().numpy() == pytest.approx(pi, abs=1e-4)
        assert 1 + rate[some] == pytest.approx(nonzero[some], abs=1e-4)
    assert table.logits_RV.softmax(-1).detach().numpy()[some] == pytest.approx(tokens[some], abs=1e-4)
