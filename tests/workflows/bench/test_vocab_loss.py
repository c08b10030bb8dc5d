"""The vocabulary benchmark at a tiny size, through its real processes, and the equality that it demands."""

from pathlib import Path

import numpy as np
import pytest
import torch

from workflows.bench import vocab_loss
from workflows.bench.vocab_loss import Sizes, every_position, gaps_alone, measure, state
from workflows.errors import OneFlowError

TINY = Sizes(vocabulary=97, width=8, tokens=64, documents=4)


def test_a_tiny_run_tells_the_contracts_keys() -> None:
    told = measure(1, TINY, "cpu").to_json()
    assert {"name", "ours", "peer", "unit", "runs", "machine", "versions", "seconds"} <= set(told)
    assert set(told["runs"]) == {"ours", "peer", "ours_seconds", "peer_seconds"}
    assert max(told["differences"].values()) <= vocab_loss.TOLERANCE
    assert told["sizes"]["rows"] <= told["sizes"]["slots"]
    assert told["sizes"]["slots"] + told["sizes"]["pairs"] == TINY.tokens


@pytest.mark.parametrize("seed", range(4))
def test_both_sides_give_the_same_loss_and_gradients(seed: int) -> None:
    found = []
    for loss in (gaps_alone, every_position):
        heads, hidden, slots, tokens = state(TINY, "cpu", seed)
        total = loss(heads, hidden, slots, tokens)
        total.backward()
        found.append((total.detach(), hidden.grad, heads.tokens.weight.grad))
    for ours, peer in zip(*found, strict=True):
        torch.testing.assert_close(ours, peer, rtol=1e-5, atol=1e-5)


def test_kept_missing_and_gaps_are_those_of_method_7_6() -> None:
    rows, slots = [], []
    for seed in range(400):
        _, hidden, slot_K, _ = state(Sizes(11, 2, 600, 1), "cpu", seed)
        rows.append(len(slot_K.unique()))
        slots.append(len(hidden))
    assert np.mean(slots) / 600 == pytest.approx(1 / 2, abs=0.04)
    assert np.mean(rows) / 600 == pytest.approx(1 / 6, abs=0.015)


def test_sides_that_differ_are_an_error(tmp_path: Path) -> None:
    for name, loss in (("ours", 1.0), ("peer", 1.0 + 1e-4)):
        np.savez(tmp_path / f"{name}.npz", loss=loss)
    with pytest.raises(OneFlowError, match=r"loss: the two sides differ by 1\.0e-04"):
        vocab_loss._apart(tmp_path)
