"""The adaptive schedule in a run: fitted a block ahead, kept in checkpoints, and the same after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from oneflow_core.flows.adaptive import BINS, fit, tally
from oneflow_core.flows.schedule import Linear, Table, build_schedule
from oneflow_core.objectives import ObjectiveConfig
from oneflow_core.packing import Pack
from tests.workflows.training.corpus import tiny_config, write_corpus
from tests.workflows.training.test_distributed import final_tensors, launch, run_root
from workflows.training.best import read_best
from workflows.training.config import TrainConfig
from workflows.training.heldout import HeldOut
from workflows.training.materials import gather
from workflows.training.pace import Pace
from workflows.training.parallel import Worker

ADAPTIVE = {"objective__schedule": "adaptive", "objective__adaptive_every": 3}
CONFIG = ObjectiveConfig(schedule="adaptive", adaptive_every=3, adaptive_memory=0.5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("corpus") / "tiny"
    write_corpus(base)
    return base


def packs(corpus: Path, tmp_path: Path, count: int) -> list[Pack]:
    config = tiny_config(corpus, tmp_path, data__lanes=1, compute__workers=1)
    stream = iter(gather(config).build_loader(config.data, 0, "train", 0, 1))
    return [next(stream)[0] for _ in range(count)]


def losses(pack: Pack) -> torch.Tensor:
    """Losses that fall from 5 to 3 by the time half of the text is there."""
    return 5 - 4 * pack.clock_K.clamp(max=0.5)


def test_a_table_is_fitted_from_the_blocks_before_the_last(
    alone: Worker, corpus: Path, tmp_path: Path
) -> None:
    """Against sums kept by hand; block k is fitted from steps before (k - 1) * every, the older half forgotten."""
    pace, held, sums = Pace(CONFIG, alone), packs(corpus, tmp_path, 12), np.zeros((3, BINS))
    wanted: dict[int, Linear | Table] = {0: Linear(), 1: Linear()}
    block = np.zeros((3, BINS))
    for step, pack in enumerate(held):
        assert pace.schedule_at(step) == wanted[step // 3]
        assert pace.schedule_at(step + 3) == wanted[step // 3 + 1]
        block += tally(wanted[step // 3], pack.clock_K.numpy(), losses(pack)).numpy()
        pace.add(step, pack, losses(pack))
        pace.after(step + 1)
        if step % 3 == 2:
            sums, block = 0.5 * sums + block, np.zeros((3, BINS))
            wanted[step // 3 + 2] = fit(sums, CONFIG.adaptive_share)
    assert wanted[4] != Linear() and pace.name_at(12).startswith("table:")
    with pytest.raises(LookupError, match="raise objective.adaptive_every"):
        pace.schedule_at(18)


def test_it_goes_on_from_its_state_as_if_nothing_had_happened(
    alone: Worker, corpus: Path, tmp_path: Path
) -> None:
    undisturbed, broken = Pace(CONFIG, alone), Pace(CONFIG, alone)
    for step, pack in enumerate(packs(corpus, tmp_path, 12)):
        for pace in (undisturbed, broken):
            pace.add(step, pack, losses(pack))
            pace.after(step + 1)
        told = json.loads(json.dumps(broken.state()))
        broken = Pace(CONFIG, alone)
        broken.load_state(told)
    assert broken.state() == undisturbed.state()
    assert broken.name_at(14) == undisturbed.name_at(14)


def test_other_schedules_have_no_tables_and_no_state(alone: Worker, corpus: Path, tmp_path: Path) -> None:
    pace = Pace(ObjectiveConfig(schedule="power:2"), alone)
    [pack] = packs(corpus, tmp_path, 1)
    pace.add(0, pack, losses(pack))
    pace.after(500)
    assert pace.schedule_at(10**6) is None and pace.name_at(3) == "power:2" and pace.state() == {}


def test_held_out_documents_are_corrupted_as_under_the_linear_schedule(
    alone: Worker, corpus: Path, tmp_path: Path
) -> None:
    held = []
    for changes in ({}, ADAPTIVE):
        config = tiny_config(corpus, tmp_path, compute__workers=1, **changes)
        materials = gather(config)
        held.append(HeldOut(config, materials, alone).loss(materials.build_model(0)))
    assert held[0] == held[1]


def final_state(config: TrainConfig) -> dict[str, Any]:
    commit = max((run_root(config) / "commits").iterdir())
    state: dict[str, Any] = json.loads(commit.read_text())["state"]
    return state


def tables(state: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    read = {block: build_schedule(name) for block, name in state["schedule"]["tables"].items()}
    return {block: table.values for block, table in read.items() if isinstance(table, Table)}


def test_a_killed_run_goes_on_with_the_same_tables_on_any_workers(corpus: Path, tmp_path: Path) -> None:
    undisturbed = tiny_config(corpus, tmp_path / "a", **ADAPTIVE)
    launch(undisturbed, tmp_path, 1).finish()
    killed = tiny_config(corpus, tmp_path / "b", **ADAPTIVE)
    launch(killed, tmp_path, 1).kill_after_a_commit(killed)
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    moved = tiny_config(corpus, tmp_path / "c", **ADAPTIVE)

    assert "going on after step" in launch(killed, tmp_path, 1).finish()
    launch(moved, tmp_path, 2).finish()
    ours, theirs, elsewhere = (final_state(c) for c in (killed, undisturbed, moved))
    assert ours["schedule"] == theirs["schedule"]
    assert ours["loader"] == theirs["loader"] == elsewhere["loader"]
    assert final_tensors(killed) == final_tensors(undisturbed)
    found = tables(theirs)
    assert found.keys() == {"3", "4", "5"} and found["5"] != build_schedule("table:0.5")
    for block, values in tables(elsewhere).items():
        assert values == pytest.approx(found[block], abs=0.0015)
    best = read_best(str(run_root(undisturbed)))
    assert best and best.schedule and best.schedule.startswith("table:")


def test_more_steps_read_ahead_than_a_block_has_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="adaptive_every 2 must be above data.read_ahead 2"):
        tiny_config(corpus, tmp_path, objective__schedule="adaptive", objective__adaptive_every=2)
    with pytest.raises(ValidationError, match="is none of: linear"):
        tiny_config(corpus, tmp_path, objective__schedule="sometimes")
    with pytest.raises(ValidationError, match="are none of: independent"):
        tiny_config(corpus, tmp_path, objective__mixture={"concurrent_times": "never"})
