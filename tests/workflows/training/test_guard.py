"""Steps that go wrong leave no trace, are stored for a replay, and end in a rollback that a resumed run repeats."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.workflows.training.corpus import tiny_config
from tests.workflows.training.poison import read_at, write_poisoned
from tests.workflows.training.test_distributed import Run, final_tensors, launch, run_root
from workflows.cli import app
from workflows.errors import OneFlowError
from workflows.training.commit import commit_name
from workflows.training.config import GuardSettings, TrainConfig
from workflows.training.faults import read_fault
from workflows.training.guard import Diverged, Guard
from workflows.training.loop import Trainer
from workflows.training.materials import gather
from workflows.training.pack_files import packs_of_files, packs_to_files
from workflows.training.parallel import Worker

BAD = (5, 6)
"""Steps, from 0, that meet a spoilt document; both in the packs of the second of two workers."""


@pytest.fixture(scope="module")
def bad_documents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base = tmp_path_factory.mktemp("clean") / "tiny"
    write_poisoned(base)
    read = read_at(base, BAD[-1] + 1, 1, 2)
    return [read[step][0] for step in BAD]


@pytest.fixture(scope="module")
def corpus(bad_documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("poisoned") / "tiny"
    write_poisoned(base, frozenset(bad_documents))
    return base


def small(corpus: Path, place: Path, **changes: object) -> TrainConfig:
    never = {"watch__heldout_every": 1000, "data__holdout": 0, "checkpoint__every_steps": 4}
    return tiny_config(corpus, place, **{**never, "budget__steps": 10, **changes})


def trainer_of(config: TrainConfig, worker: Worker) -> Trainer:
    materials = gather(config)
    return Trainer(config, materials, worker, f"{config.checkpoint.url}/{materials.run_key}")


def held(trainer: Trainer) -> dict[str, Tensor]:
    """All state of the optimiser, Adam's counts of steps with it."""
    adam = trainer.optimiser._adam.state
    counts = {f"count.{i}": state["step"].clone() for i, state in enumerate(adam.values())}
    return {n: t.clone() for n, t in trainer.optimiser.tensors().items()} | counts


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def steps_of(trainer: Trainer, skipping: tuple[int, ...] = ()) -> Iterator[tuple[bool, dict[str, Tensor]]]:
    """The state after each step, and whether the step changed it; steps in `skipping` are read and not taken."""
    stream, before = iter(trainer.loader), held(trainer)
    while not trainer._done:
        packs = next(stream)
        if trainer.step in skipping:
            trainer.step += 1
        else:
            trainer._train(packs)
        after = held(trainer)
        yield not same(before, after), after
        before = after
    trainer.loader.close()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_bad_step_is_as_if_it_had_not_been(
    kind: str, alone: Worker, corpus: Path, bad_documents: list[str], tmp_path: Path
) -> None:
    """Against a run to which these steps were never shown."""
    changes = {"compute__workers": 1, "optimiser__kind": kind}
    guarded = trainer_of(small(corpus, tmp_path / "guarded", **changes), alone)
    blind = trainer_of(small(corpus, tmp_path / "blind", **changes), alone)
    seen, wanted = list(steps_of(guarded)), list(steps_of(blind, skipping=BAD))
    assert [changed for changed, _ in seen] == [step not in BAD for step in range(10)]
    assert same(seen[-1][1], wanted[-1][1])
    assert guarded._guard.metrics() == {"guard/skipped": 2.0, "guard/rollbacks": 0.0}
    metrics = guarded._meter.read(guarded.loader.stats)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["train/loss"] == pytest.approx(blind._meter.read(blind.loader.stats)["train/loss"])
    about = json.loads(
        next(Path(guarded.root).glob("faults/step-000000005/rank-00000/fault.json")).read_text()
    )
    assert bad_documents[0] in about["documents"][1] and about["losses"][0] != about["losses"][1]


def test_a_killed_run_skips_and_rolls_back_as_an_undisturbed_one(
    corpus: Path, bad_documents: list[str], tmp_path: Path
) -> None:
    """Two workers, killed before the bad steps and after the rollback."""
    changes = {"budget__steps": 13, "guard__max_skips": 2, "watch__log_every": 1}
    whole, broken = (small(corpus, tmp_path / name, **changes) for name in ("whole", "broken"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    output = launch(whole, tmp_path / "a", 2).finish()
    assert "back to the weights after step 4; going on behind step 6" in output
    for step in (4, 8):
        kill_at(launch(broken, tmp_path / "b", 2), broken, step)
    assert "going on after step 8" in launch(broken, tmp_path / "b", 2).finish()
    assert final_tensors(broken) == final_tensors(whole)
    commit = json.loads((run_root(broken) / "commits" / commit_name(13)).read_text())
    state = commit["state"]["guard"]
    # Steps 0 to 3 and 7 to 12 are in the parameters.
    assert (state["applied"], state["skipped"], state["windows"]) == (10, 2, [[4, 6]])
    # The spoilt documents are the second worker's, and so are the packs that are stored.
    stored = sorted(str(p.relative_to(run_root(whole))) for p in run_root(whole).glob("faults/*/*"))
    assert stored == [f"faults/step-00000000{step}/rank-00001" for step in BAD]

    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(whole.model_dump(mode="json")))
    place = str(run_root(whole) / stored[0])
    result = CliRunner().invoke(app, ["train", str(config), "--replay", place, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["step"], told["rank"], told["weights_of_step"]) == (5, 1, 13)
    [pack] = told["packs"]
    assert bad_documents[0] in pack["documents"] and pack["bad_gradients"]
    assert pack["bad_parts"] and set(pack["bad_parts"]) <= set(pack["parts"])
    assert f"no numbers: {pack['bad_parts'][0]}" in result.stdout
    with pytest.raises(OneFlowError, match="fault.json"):
        read_fault(str(run_root(whole)))


def kill_at(run: Run, config: TrainConfig, step: int) -> None:
    """SIGKILL to all workers once a checkpoint of `step` is committed."""
    deadline = time.monotonic() + 500
    while not list(Path(config.checkpoint.url).glob(f"*/commits/{commit_name(step)}")):
        assert time.monotonic() < deadline and all(p.is_alive() for p in run.processes)
        time.sleep(0.005)
    for process in reversed(run.processes):
        process.kill()
        process.join()


def test_a_run_that_only_goes_wrong_ends_with_the_cause(alone: Worker, corpus: Path, tmp_path: Path) -> None:
    changes = {"compute__workers": 1, "guard__max_skips": 1, "guard__max_rollbacks": 1, "guard__max_dumps": 1}
    config = small(corpus, tmp_path, **changes)
    with pytest.raises(Diverged, match="step 6: the loss is .*1 rollbacks did not help.*lower optimiser.lr"):
        trainer_of(config, alone).run()
    assert len(list(run_root(config).glob("faults/*"))) == 1
    early = small(corpus, tmp_path / "early", checkpoint__every_steps=1000, **changes)
    with pytest.raises(Diverged, match="step 5.*there is no checkpoint from before"):
        trainer_of(early, alone).run()


def test_packs_come_back_from_files_as_they_were(corpus: Path, tmp_path: Path) -> None:
    config = small(corpus, tmp_path, compute__workers=1)
    loader = gather(config).build_loader(config.data, 0, "train", 0, 1)
    packs = next(iter(loader))
    data, trees = packs_to_files(packs)
    back = packs_of_files(data, json.loads(json.dumps(trees)))
    for one, other in zip(packs, back, strict=True):
        ours, theirs = dataclasses.asdict(one), dataclasses.asdict(other)
        for words in ("doc_ids", "tasks"):
            assert list(ours.pop(words)) == list(theirs.pop(words)) != []
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    loader.close()


def test_a_spike_is_a_loss_far_above_the_median_of_those_before(alone: Worker) -> None:
    """Against numpy's medians; also in losses below zero, and over a state that went through JSON."""
    rng, norm = np.random.default_rng(0), torch.tensor(1.0)
    guard = Guard(GuardSettings(spike_factor=6.0, spike_window=16))
    losses: list[float] = []
    for step, loss in enumerate(rng.normal(-1.0, 0.1, 40).astype(np.float32).tolist()):
        known = np.array(losses[-16:])
        middle = float(np.median(known)) if losses else 0.0
        limit = middle + 6 * 1.4826 * float(np.median(abs(known - middle))) if losses else 0.0
        for beside in (-1e-3, 1e-3) if len(losses) >= 16 else ():
            probe = Guard(GuardSettings(spike_factor=6.0, spike_window=16))
            probe.load_state(step, json.loads(json.dumps({"guard": guard.state()})))
            assert probe.accepts(step, torch.tensor(limit + beside), norm) == (beside < 0)
            assert (probe.fault is None) == (beside < 0) and probe.skipped == (beside > 0)
        assert guard.accepts(step, torch.tensor(loss), norm)
        losses.append(loss)
    assert not guard.accepts(40, torch.tensor(-1.0), torch.tensor(float("inf")))
    assert (guard.applied, guard.skipped, guard.streak, guard.first_bad) == (40, 1, 1, 40)


def test_a_guard_without_a_state_counts_all_steps_as_taken() -> None:
    guard = Guard(GuardSettings())
    guard.load_state(7, {})
    assert (guard.applied, guard.skipped) == (7, 0)
