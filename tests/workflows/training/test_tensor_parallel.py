"""A run on 1 worker, and the same one in tensor groups: all that it says, and its checkpoints, agree."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError

from oneflow_core.model import PRESETS
from tests.workflows.training.corpus import tiny_config, write_corpus
from tests.workflows.training.processes import together
from tests.workflows.training.test_mesh import checkpoint
from workflows.errors import UsageError
from workflows.training.config import TrainConfig
from workflows.training.loop import Hooks
from workflows.training.planning.plan import plan
from workflows.training.tensor_parallel import check_dimensions
from workflows.training.worker import work

DIMS = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64, "text_time": True}
STEP = ("train/", "bins/", "grad_norm/", "weight_norm/", "data/packing")
"""What a step says that does not depend on time, by how its names begin."""
BUDGET = ("train/progress", "train/lr")
"""What depends on how far the budget goes."""
EVALUATION = ("heldout/", "tasks/", "calibration/", "samples/")
PER_SECOND = ("speed/tokens_per_s", "speed/documents_per_s", "speed/tflops")


def _evaluated(said: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in said.items() if name.startswith(EVALUATION)}


def _work(config: TrainConfig, told: Path) -> None:
    """Go on with the run `key`; note what each step says, rates as amounts of a step."""
    rows = {}
    # Other tests of the session may have named a server; it would be shown pictures of latents that no codec made.
    os.environ.pop("MLFLOW_TRACKING_URI", None)

    def note(progress: object) -> None:
        said = progress.metrics
        told = {name: value for name, value in said.items() if name.startswith(STEP) and name not in BUDGET}
        rows[progress.step] = told | {name: said[name] * said["speed/step_s"] for name in PER_SECOND}
        if progress.step % 4 == 1 and "heldout/loss" in said:
            rows[f"evaluated before {progress.step}"] = _evaluated(said)

    outcome = work(config, Hooks(progress=note), "key")
    rows[f"evaluated before {outcome.step + 1}"] = _evaluated(outcome.metrics)
    if dist.get_rank() == 0:
        told.write_text(json.dumps(rows))
    dist.destroy_process_group()


def go_on(directory: Path, corpus: Path, steps: int, workers: int, **changes: object) -> dict[str, dict]:
    """The run at `directory` up to `steps`; what its steps said."""
    config = tiny_config(
        corpus, directory, model__dims=DIMS, data__lanes=4, data__packs_per_lane=2, data__tokens=128,
        data__holdout=0.3, objective__schedule="adaptive", objective__adaptive_every=4, budget__steps=steps,
        optimiser__decay="wsd", optimiser__decay_share=0.01, optimiser__clip=0.5, watch__log_every=1,
        watch__sample_every=4, watch__prompts=["a red thing"], watch__captions=1, watch__length_captions=3,
        watch__sampler_steps=2, checkpoint__keep=9, compute__workers=workers, **changes,
    )  # fmt: skip
    told = directory / f"told-{steps}.json"
    directory.mkdir(exist_ok=True)
    together(_work, workers, directory, config, told)
    return json.loads(told.read_text())


Runs = tuple[Path, Path, dict, dict]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run on one worker; the same one as 2 groups of 2, on 1, and as 1 group of 2."""
    base = tmp_path_factory.mktemp("tensor")
    write_corpus(base / "corpus")
    shared, kept = "compute__tensor_parallel", "compute__activation_checkpointing"
    alone = go_on(base / "alone", base / "corpus", 12, 1)
    moved: dict[str, dict] = {}
    for steps, workers, changes in (
        (4, 4, {shared: 2, kept: "full", "compute__reshard_after_forward": True}),
        (8, 1, {}),
        (12, 2, {shared: 2, kept: "selective"}),
    ):
        moved |= go_on(base / "moved", base / "corpus", steps, workers, **changes)
    return base / "alone", base / "moved", alone, moved


def test_tensor_groups_change_nothing_that_a_run_says(runs: Runs) -> None:
    *_, alone, moved = runs
    steps = {str(step) for step in range(1, 13)}
    assert moved.keys() == steps | {f"evaluated before {step}" for step in (5, 9, 13)} == alone.keys()
    assert max(alone[step]["train/grad_norm"] for step in steps) > 0.5
    for step, said in moved.items():
        # A bin that nothing fell into keeps its last value, which a new process does not know.
        assert all(name.startswith("bins/") for name in said.keys() ^ alone[step].keys())
        for name, value in said.items():
            assert value == pytest.approx(alone[step][name], rel=1e-5, abs=1e-5), (step, name)


def test_the_table_of_the_adaptive_schedule_is_the_same(runs: Runs) -> None:
    *_, alone, moved = runs
    for step in range(9, 13):
        kappa = alone[str(step)]["train/kappa/0.5"]
        assert kappa != 0.5
        assert moved[str(step)]["train/kappa/0.5"] == kappa


def test_checkpoints_are_those_of_one_worker(runs: Runs) -> None:
    alone, moved, *_ = runs
    for step in (4, 8, 12):
        (one, expected), (other, got) = checkpoint(alone, step), checkpoint(moved, step)
        assert expected.keys() == got.keys()
        assert one["state"]["loader"] == other["state"]["loader"]
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, atol=2e-5, rtol=1e-4, msg=f"{step} {name}")


def test_what_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    def config(**changes: object) -> TrainConfig:
        return tiny_config(tmp_path, tmp_path, **changes)

    held = config(compute__workers=4, compute__tensor_parallel=2, compute__replicas=2)
    assert held.data.lanes == 2
    with pytest.raises(
        ValidationError, match=r"tensor_parallel 4 must divide compute.workers 4 / .*replicas 2"
    ):
        config(compute__workers=4, compute__tensor_parallel=4, compute__replicas=2)
    with pytest.raises(
        ValidationError, match=r"workers 8 / compute.tensor_parallel 2 must divide data.lanes 2"
    ):
        config(compute__workers=8, compute__tensor_parallel=2)
    with pytest.raises(ValidationError, match=r"tensor_parallel 2 with compute.compile"):
        config(compute__tensor_parallel=2, compute__compile=True)
    with pytest.raises(ValidationError, match=r"tensor_parallel 2 must divide compute.min_workers 1"):
        config(compute__tensor_parallel=2, compute__min_workers=1)
    check_dimensions(PRESETS["8b"], 8)
    with pytest.raises(
        UsageError, match=r"tensor_parallel 16: the network has kv_heads 8; it must divide them"
    ):
        check_dimensions(PRESETS["8b"], 16)


def test_a_plan_counts_a_group_s_share_of_the_activations(tmp_path: Path) -> None:
    def planned(**changes: object) -> dict:
        made = {"model__preset": "8b", "model__dims": {}, "compute__workers": 8, "data__lanes": 8, **changes}
        return plan(tiny_config(tmp_path / "none", tmp_path, **made)).to_json()

    plain, shared = planned(), planned(compute__tensor_parallel=4)
    assert plain["memory_bytes"]["held"] == shared["memory_bytes"]["held"]
    kept, less = (p["memory_bytes"]["passing"]["loss"]["activations"] for p in (plain, shared))
    assert 0.25 < less / kept < 0.6
    assert plain["flops_per_step"] == shared["flops_per_step"]
