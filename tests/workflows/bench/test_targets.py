"""The targets benchmark at small lengths, and its loop as the reference of the corruption."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from workflows.bench import targets
from workflows.bench.targets import Tokenised, by_loop, line
from workflows.cli import app
from workflows.errors import OneFlowError


def test_the_command_tells_the_contracts_keys() -> None:
    done = CliRunner().invoke(app, ["bench", "targets", "--runs", "1", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert {"name", "ours", "peer", "unit", "runs", "machine", "versions", "ms_per_sample_1024"} <= set(told)
    assert set(told["ms"]) == set(told["peer_ms"]) == {"256", "512", "1024", "2048", "4096"}
    assert told["ms_per_sample_1024"] == told["ms"]["1024"] == told["ours"]
    assert told["exponent"] < 1.1


def test_a_line_is_found_as_a_line_and_a_power_as_a_power() -> None:
    straight = line({n: 0.5 + 2.0 * n / 1024 for n in (64, 128, 256)})
    assert straight["fixed_ms"] == pytest.approx(0.5)
    assert straight["ms_per_1024_more"] == pytest.approx(2.0)
    assert straight["off_the_line"] == pytest.approx(0, abs=1e-9)
    square = line({n: 1e-3 * n**2 for n in (64, 128, 256)})
    assert square["exponent"] == pytest.approx(2.0)
    assert square["off_the_line"] > 0.1


def test_the_loop_keeps_or_lists_every_token() -> None:
    ids = list(range(2, 90))
    found = by_loop(ids, np.random.default_rng(4))
    bags = {slot: [] for slot in range(len(found["token_T"]))}
    for slot, token in zip(found["pair_slot_K"], found["pair_token_K"], strict=True):
        bags[slot].append(token)
    restored = [t for slot, kept in enumerate(found["token_T"]) for t in (kept, *bags[slot])]
    assert restored == [0, *ids]
    assert [len(bag) for bag in bags.values()] == found["count_S"].tolist()


def test_another_corruption_is_an_error() -> None:
    made = Tokenised([16])
    objective = targets.OneFlowObjective(targets.ObjectiveConfig(), targets.PRESETS["nano"], made)
    document = targets.Document("a", "b", "c", (targets.TextSegment("16"),))
    example = objective.corrupt(targets.Sample(document), np.random.default_rng(1))
    targets._same(example, made.ids["16"], 1)
    with pytest.raises(OneFlowError, match="the loop finds another"):
        targets._same(example, made.ids["16"], 2)
