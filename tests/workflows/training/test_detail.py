"""Norms by part of the network and losses by task, on one and on two real workers, against the whole on one."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from oneflow_core.flops import NeededFlops
from oneflow_core.model import OneFlowModel
from oneflow_core.objectives import LossOutput, ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Pack, collate
from tests.core.words import TINY, WordTokenizer, image, sample, text
from tests.workflows.training.processes import forking
from workflows.device_rate import peak_rate, sheet_rate
from workflows.training.config import ComputeSettings, OptimiserSettings
from workflows.training.detail import Detail
from workflows.training.groups import GROUPS, Groups
from workflows.training.heldout import _by_task, _sums_by_task, _tasks
from workflows.training.optimiser import Optimiser
from workflows.training.parallel import Worker, join_group, shard

DIMS = replace(TINY, layers=4, prompt_embedding=True, text_time=True)
SETTINGS = OptimiserSettings(clip=0.01)
MIXTURE = TaskMixture(concurrent=0.3, prompt_dropout=0.2)
OBJECTIVE = OneFlowObjective(ObjectiveConfig(mixture=MIXTURE), DIMS, WordTokenizer())
PARTS = {
    "embedding": ("embedding.weight", "prompt"),
    "adapters": ("patches.", "features.", "backbone.time."),
    "trunk_low": ("backbone.blocks.0.", "backbone.blocks.1."),
    "trunk_middle": ("backbone.blocks.2.",),
    "trunk_high": ("backbone.blocks.3.", "backbone.norm."),
    "text_heads": ("heads.",),
    "image_head": ("image_head.",),
}


def built() -> OneFlowModel:
    torch.manual_seed(0)
    model = OneFlowModel(DIMS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def packed(rank: int) -> Pack:
    rng = np.random.default_rng(rank)
    documents = [sample(text(rng.integers(2, 40, 9).tolist()), image(), seed=rank)] * 6
    documents += [sample(text([3, 4]), image(), text([5]), seed=rank), sample(text([7, 8, 9]))]
    return collate([OBJECTIVE.corrupt(d, rng) for d in documents])


NORMALISERS = {"text": 50.0, "image": 40.0}


def _scored(model: OneFlowModel, pack: Pack) -> LossOutput:
    out = OBJECTIVE.loss(model, pack, NORMALISERS)
    out.total.backward()
    return out


def _measured(worker: Worker) -> dict[str, float]:
    model = built()
    settings = ComputeSettings(workers=worker.world_size, device="cpu", shard_min_mb=0)
    shard(model, settings, worker)
    optimiser = Optimiser(model, SETTINGS)
    detail = Detail(model, OBJECTIVE, optimiser, worker, settings)
    pack = packed(worker.rank)
    detail.add(pack, _scored(model, pack))
    norm = optimiser.step(0.0, 0.9)
    detail.step()
    told = detail.read(2.0)
    return told | {"norm": norm.item(), "local_rss": detail.local["memory/rss_gib"]}


def _rank(rank: int, port: int, directory: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.save(_measured(join_group(ComputeSettings(workers=2, device="cpu"))), directory / f"{rank}")
    dist.destroy_process_group()


def _on_two(directory: Path) -> list[dict[str, float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = forking()
    ranks = [context.Process(target=_rank, args=(r, port, directory)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    return [torch.load(directory / f"{rank}", weights_only=True) for rank in range(2)]


def _expected(packs: list[Pack]) -> tuple[dict[str, float], OneFlowModel, list[LossOutput]]:
    """Norms of the whole network's gradient and weights, part by part."""
    model = built()
    outs = [_scored(model, pack) for pack in packs]
    named = dict(model.named_parameters())
    found = {}
    for group, prefixes in PARTS.items():
        held = [p for name, p in named.items() if name.startswith(prefixes)]
        found[f"grad_norm/{group}"] = sum(float(p.grad.square().sum()) for p in held if p.grad is not None)
        found[f"weight_norm/{group}"] = sum(float(p.detach().square().sum()) for p in held)
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for name, p in named.items() if name.startswith(tuple(sum(PARTS.values(), ())))
    )
    return {name: square**0.5 for name, square in found.items()}, model, outs


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_told_of_the_parts_is_that_of_the_whole(
    request: pytest.FixtureRequest, tmp_path: Path, workers: int
) -> None:
    all_told = _on_two(tmp_path) if workers == 2 else [_measured(request.getfixturevalue("alone"))]
    packs = [packed(rank) for rank in range(workers)]
    expected, model, outs = _expected(packs)
    for told in all_told:
        for name, value in expected.items():
            assert told[name] == pytest.approx(value, rel=1e-4), name
        squares = [told[f"grad_norm/{group}"] ** 2 for group in PARTS]
        assert sum(squares) == pytest.approx(told["norm"] ** 2, rel=1e-5)
        clock = np.concatenate([pack.clock_K.numpy() for pack in packs])
        nll = np.concatenate([out.nll_K.numpy() for out in outs])
        late = nll[clock >= 0.8].mean()
        assert told["bins/text_ce/t0.9"] == pytest.approx(late, rel=1e-4)
        flops = sum(NeededFlops.of(model).of_pack(pack) for pack in packs)
        assert told["speed/tflops"] == pytest.approx(flops / 2.0 / 1e12)
        assert told["speed/mfu"] == pytest.approx(told["speed/tflops"] / told["speed/peak_tflops"])
        assert told["memory/rss_gib"] == max(t["local_rss"] for t in all_told)
        assert 0.05 < told["memory/rss_gib"] < 20
    assert all(told.keys() - {"local_rss"} == all_told[0].keys() - {"local_rss"} for told in all_told)


def test_blocks_stand_in_their_third_and_unknown_parameters_apart() -> None:
    names = [f"backbone.blocks.{i}.attention.qkv.weight" for i in range(6)] + ["elsewhere"]
    groups = Groups(names)
    tensors = {name: torch.full((1,), 2.0**i) for i, name in enumerate(names)}
    told = dict(zip(groups.names, groups.squares(tensors).tolist(), strict=True))
    assert told == {"trunk_low": 5.0, "trunk_middle": 80.0, "trunk_high": 1280.0, "other": 4096.0}
    assert groups.names == [g for g in GROUPS if g in told]


def test_rows_are_told_by_the_task_of_their_document() -> None:
    """Each document's rows are found by corrupting and packing it alone, too."""
    rng = np.random.default_rng(3)
    documents = [sample(text([3, 4, 5]), image(), seed=n) for n in range(20)] + [sample(text([7, 8, 9]))]
    documents += [sample(text([3]), image(), text([5, 6])), sample(text([4], "prompt"), image("target"))]
    examples = [OBJECTIVE.corrupt(d, rng) for d in documents]
    pack, model = collate(examples), built()
    assert set(pack.tasks) >= {"text", "text_to_image", "image_to_text", "concurrent", "interleaved"}
    sums: dict[tuple[str, str], list[float]] = {}
    for example in examples:
        alone = collate([example])
        with torch.no_grad():
            out = OBJECTIVE.loss(model, alone, NORMALISERS)
        for part, values in (("text_ce", out.nll_K), ("image_mse", out.error_N[alone.flow_N])):
            sums.setdefault((example.task, part), []).extend(values.tolist())
    with torch.no_grad():
        out = OBJECTIVE.loss(model, pack, NORMALISERS)
    task_K, task_N = _tasks(pack)
    told = _by_task("text_ce", _sums_by_task(task_K, out.nll_K, torch.ones_like(out.nll_K)))
    told |= _by_task("image_mse", _sums_by_task(task_N, out.error_N, pack.flow_N))
    expected = {f"tasks/{task}/{part}": np.mean(v) for (task, part), v in sums.items() if v}
    assert told == pytest.approx(expected, rel=1e-4)


def test_the_yardstick_is_the_data_sheet_where_it_tells_and_leaves_random_numbers_alone() -> None:
    assert sheet_rate("NVIDIA H100 80GB HBM3") == 989e12
    assert sheet_rate("cpu") is None
    before = torch.get_rng_state()
    assert 1e8 < peak_rate(torch.device("cpu"), torch.float32) < 1e14
    assert torch.equal(torch.get_rng_state(), before)
