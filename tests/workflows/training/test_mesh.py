"""One run on 1 worker, on 4 that share the model, on 2 copies of 2: the same losses, norms and parameters."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from oneflow_core.model import OneFlowModel
from tests.core.words import TINY
from tests.workflows.training.corpus import tiny_config, write_corpus
from tests.workflows.training.processes import together
from workflows.training.average import averaged, gathered
from workflows.training.config import ComputeSettings, OptimiserSettings, TrainConfig
from workflows.training.loop import Hooks
from workflows.training.optimiser import Optimiser
from workflows.training.parallel import join_group, local, shard, whole
from workflows.training.worker import work

LOSSES = ("train/loss", "train/grad_norm")


def _work(config: TrainConfig, told: Path) -> None:
    """Go on with the run `key`, and note what each step says."""
    rows = {}

    def note(progress: object) -> None:
        if progress.step in rows:
            return  # The end is told once more, with what was held out after it.
        rows[progress.step] = {name: progress.metrics[name] for name in LOSSES}
        if "heldout/loss" in progress.metrics:
            rows[f"held out before {progress.step}"] = {"loss": progress.metrics["heldout/loss"]}

    outcome = work(config, Hooks(progress=note), "key")
    rows[f"held out before {outcome.step + 1}"] = {"loss": outcome.metrics["heldout/loss"]}
    if dist.get_rank() == 0:
        told.write_text(json.dumps(rows))
    dist.destroy_process_group()


def go_on(directory: Path, corpus: Path, steps: int, workers: int, replicas: int) -> dict[str, dict]:
    """The run at `directory` up to `steps`; what its steps said."""
    config = tiny_config(
        corpus, directory, data__lanes=4, data__packs_per_lane=2, data__tokens=128, data__holdout=0.3,
        budget__steps=steps,
        optimiser__decay="wsd", optimiser__decay_share=0.01, optimiser__clip=0.5, watch__log_every=1,
        checkpoint__keep=9, compute__workers=workers, compute__replicas=replicas,
    )  # fmt: skip
    told = directory / f"told-{steps}.json"
    directory.mkdir(exist_ok=True)
    together(_work, workers, directory, config, told)
    return json.loads(told.read_text())


def checkpoint(directory: Path, step: int) -> tuple[dict, dict[str, torch.Tensor]]:
    """The commit of a step, and its tensors put together."""
    root = directory / "key"
    commit = json.loads((root / "commits" / f"step-{step:09d}.json").read_text())
    held = {}
    for name, _, _ in commit["files"]:
        held |= load_file(root / commit["directory"] / name)
    tensors = {}
    for name, (dtype, shape, chunks) in commit["tensors"].items():
        tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        for offsets, sizes, _ in chunks:
            box = tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))
            tensors[name][box] = held[f"{name}@{','.join(map(str, offsets))}"]
    return commit, tensors


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict, dict]:
    """A run on one worker, and the same one on 4, 2 x 2 and 1."""
    base = tmp_path_factory.mktemp("mesh")
    write_corpus(base / "corpus")
    alone = go_on(base / "alone", base / "corpus", 12, 1, 1)
    moved = {}
    for steps, workers, replicas in ((4, 4, 1), (8, 4, 2), (12, 1, 1)):
        moved |= go_on(base / "moved", base / "corpus", steps, workers, replicas)
    return base / "alone", base / "moved", alone, moved


def test_the_layout_does_not_change_losses_and_norms(runs: tuple[Path, Path, dict, dict]) -> None:
    *_, alone, moved = runs
    steps = {str(step) for step in range(1, 13)}
    assert moved.keys() >= steps | {f"held out before {step}" for step in (5, 9, 13)}
    assert max(alone[step]["train/grad_norm"] for step in steps) > 0.5
    for step in moved:
        for name, value in alone[step].items():
            assert moved[step][name] == pytest.approx(value, rel=1e-5, abs=1e-5), (
                step,
                name,
            )


def test_a_checkpoint_of_any_layout_is_read_by_any_other(runs: tuple[Path, Path, dict, dict]) -> None:
    alone, moved, *_ = runs
    for step in (4, 8, 12):
        expected, got = checkpoint(alone, step)[1], checkpoint(moved, step)[1]
        assert expected.keys() == got.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, atol=2e-5, rtol=1e-4, msg=f"{step} {name}")


def test_copies_are_written_once(runs: tuple[Path, Path, dict, dict]) -> None:
    commit, tensors = checkpoint(runs[1], 8)
    for name, (_, shape, chunks) in commit["tensors"].items():
        assert sum(prod(sizes) for _, sizes, _ in chunks) == prod(shape), name
    values = 4 * sum(tensor.numel() for tensor in tensors.values())
    headers = 200 * sum(len(chunks) for _, _, chunks in commit["tensors"].values())
    assert values <= sum(size for _, size, _ in commit["files"]) <= values + headers + 1000


def _swapped() -> None:
    """The average stands in the model's place and goes again, on two sharded copies."""
    settings = ComputeSettings(
        workers=4, replicas=2, device="cpu", shard_min_mb=0, reshard_after_forward=True
    )
    worker = join_group(settings)
    torch.manual_seed(0)
    model, plain = OneFlowModel(TINY), OneFlowModel(TINY)
    shard(model, settings, worker)
    optimiser = Optimiser(model, OptimiserSettings())
    generator = torch.Generator().manual_seed(worker.rank % 2)
    with torch.no_grad():
        for tensor in [*model.parameters(), *optimiser.average.values()]:
            local(tensor).normal_(generator=generator)
    before = {name: local(t).clone() for name, t in optimiser.tensors().items()}
    mean = {name: whole(t) for name, t in optimiser.average.items()}
    with averaged(model, optimiser):
        for name, p in model.named_parameters():
            assert torch.equal(whole(p.detach()), mean[name])
        with gathered(model, settings), torch.no_grad():
            plain.load_state_dict(mean)
            tokens = torch.arange(4)
            # As many passes as a rank likes: none of them waits for another rank.
            for _ in range(worker.rank):
                x = model.embedding(tokens)
                for block, other in zip(model.backbone.blocks, plain.backbone.blocks, strict=True):
                    assert torch.equal(block.ffn(x), other.ffn(x))
    for name, tensor in optimiser.tensors().items():
        assert torch.equal(local(tensor), before[name]), name
    dist.destroy_process_group()


def test_the_average_comes_and_goes_bit_for_bit(tmp_path: Path) -> None:
    together(_swapped, 4, tmp_path)
