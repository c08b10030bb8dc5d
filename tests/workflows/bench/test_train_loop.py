"""The benchmark's sides do the same work: equal packs give equal weights; and turns are taken one at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.distributed as dist

from oneflow_core.flops import NeededFlops
from workflows.bench.data_wait import write_documents
from workflows.bench.train_loop import _result
from workflows.bench.train_loop_sides import (
    LOG_EVERY,
    Taker,
    Turn,
    alone,
    bare_loop,
    batches_of,
    config_of,
    take,
)
from workflows.training.loop import Hooks, Trainer
from workflows.training.materials import gather
from workflows.training.parallel import join_group

SMALL = ("data.tokens=256", "model.dims={layers: 1, width: 40, ffn: 64}", "optimiser.warmup_steps=10")


def test_ours_in_turns_ends_with_the_weights_of_the_bare_loop(tmp_path: Path) -> None:
    write_documents(tmp_path / "corpus", 400)
    steps = 2 * LOG_EVERY
    config = config_of(str(tmp_path / "corpus"), str(tmp_path / "runs"), 1, steps, changes=SMALL)
    materials = gather(config)
    batches = batches_of(config, materials, steps)
    model = materials.build_model(config.seed)
    bare_loop(config, materials, model)(batches)

    trainer = Trainer(
        config,
        materials,
        join_group(config.compute),
        str(tmp_path / "runs" / "run"),
        hooks=Hooks(Taker(tmp_path, LOG_EVERY)),
    )
    turns: list[Turn] = []
    seen: list[bool] = []

    def ask() -> None:
        turns.append(take(tmp_path, 0))
        seen.append((tmp_path / "done-1").exists())
        turns.append(take(tmp_path, 1))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        trainer.run()
    finally:
        asking.join(60)
        dist.destroy_process_group()
    assert seen == [False]
    kept = [sum(pack.tokens for packs in part for pack in packs) for part in (batches[:20], batches[20:])]
    assert [turn.tokens for turn in turns] == pytest.approx(kept)
    assert all(turn.seconds > 0 and turn.cpu_seconds > 0 for turn in turns)
    wanted, tensors = dict(model.named_parameters()), trainer.optimiser.tensors()
    for name, parameter in wanted.items():
        found = tensors[f"model.{name}"].full_tensor()  # type: ignore[attr-defined]
        torch.testing.assert_close(found, parameter.detach(), rtol=2e-4, atol=2e-5)


def test_the_loop_alone_tells_what_it_did_in_each_step(tmp_path: Path) -> None:
    """Kept tokens and FLOPs are those of the packs that the loader gives."""
    write_documents(tmp_path / "corpus", 400)
    config = config_of(str(tmp_path / "corpus"), str(tmp_path / "runs"), 1, 6, changes=SMALL)
    materials = gather(config)
    try:
        told = alone(config, str(tmp_path / "runs" / "run"), 2)
    finally:
        dist.destroy_process_group()
    model, batches = materials.build_model(0), batches_of(config, materials, 6)[2:]
    flops = [sum(NeededFlops.of(model).of_pack(pack) for pack in packs) for packs in batches]
    tokens = sum(pack.tokens for packs in batches for pack in packs)
    seconds = [flop / rate for flop, rate in zip(flops, told["rates"], strict=True)]
    assert told["tokens_per_s"] == pytest.approx(tokens / sum(seconds))
    assert told["step_s"] == pytest.approx(median(seconds)) and told["jitter"] >= 0
    assert told["mfu"] is None and told["device"] == "cpu"


def test_the_figures_follow_from_the_turns() -> None:
    """Worked out by hand."""
    turns = {
        "ours": [Turn(90.0, 1.0, 1.2), Turn(95.0, 1.0, 1.2), Turn(100.0, 1.0, 1.25)],
        "bare": [Turn(100.0, 1.0, 1.0)] * 3,
        "ours on 2": [Turn(170.0, 1.0, 1.2), Turn(171.0, 1.0, 1.2), Turn(150.0, 1.0, 1.2)],
        "two bare": [Turn(190.0, 1.0, 2.0), Turn(180.0, 1.0, 2.0), Turn(185.0, 1.0, 2.0)],
    }
    told = _result(turns, {"flops": 3.0, "product": 570.0}).to_json()
    assert told["ratio"] == told["ratio_of_pairs"] == 0.95
    assert told["mfu"] == {"ours": 0.5, "bare": pytest.approx(300 / 570)}
    assert told["scaling"] == pytest.approx(171 / 95) and told["scaling_limit"] == 1.85
    assert told["cpu_ratio"] == pytest.approx(0.01 / (1.2 / 95))
