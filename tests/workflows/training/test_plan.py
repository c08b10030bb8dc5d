"""The plan against what training holds and what torch counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from oneflow_core.flops import NeededFlops
from oneflow_core.model import ModelConfig, OneFlowModel
from oneflow_core.model.backbone import rotary_table
from oneflow_core.packing import Pack
from tests.core.words import TINY
from tests.workflows.training.corpus import tiny_config, write_corpus
from tests.workflows.training.processes import together
from workflows.bench.flops import flop_counter
from workflows.cli import app
from workflows.errors import UsageError
from workflows.training.config import ComputeSettings, OptimiserSettings, TrainConfig
from workflows.training.loop import Trainer
from workflows.training.materials import gather
from workflows.training.optimiser import Optimiser
from workflows.training.parallel import Worker, join_group, local, shard
from workflows.training.planning.memory import Layout, memory_of
from workflows.training.planning.packs import PackShape
from workflows.training.planning.plan import plan


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("plan") / "tiny"
    write_corpus(base)
    return base


def size(tensors: list[torch.Tensor]) -> int:
    return sum(local(t).numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_what_a_trainer_holds_is_planned_to_the_byte(
    corpus: Path, tmp_path: Path, alone: Worker, kind: str
) -> None:
    config = tiny_config(corpus, tmp_path, compute__workers=1, optimiser__kind=kind)
    told = plan(config)
    trainer = Trainer(config, gather(config), alone, str(tmp_path))
    pack = next(iter(trainer.loader))[0]
    trainer.materials.objective.loss(trainer.model, pack, {"text": 8.0, "image": 8.0}).total.backward()
    held = trainer.optimiser.tensors()
    by_part = {
        "parameters": [t for name, t in held.items() if name.startswith("model.")],
        "moments": [t for name, t in held.items() if name.startswith(("exp_avg", "momentum"))],
        "average": [t for name, t in held.items() if name.startswith("ema.")],
    }
    assert told.memory.held == {part: size(tensors) for part, tensors in by_part.items()}
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert told.memory.passing["step"]["gradients"] == size(gradients)
    assert sum(told.parameters.values()) == sum(p.numel() for p in trainer.model.parameters())
    trainer.loader.close()
    trainer._checkpoints.close()


def _three_ranks() -> None:
    """The first rank of three, among which rows do not divide, holds the most: what is planned."""
    compute = ComputeSettings(workers=3, device="cpu", shard_min_mb=0)
    worker = join_group(compute)
    model, settings = OneFlowModel(TINY), OptimiserSettings(kind="muon")
    told = memory_of(model, Layout(compute, settings, 1), PackShape(1, 0, 0, 1, 1, 1, 1))
    shard(model, compute, worker)
    held = size(list(Optimiser(model, settings).tensors().values()))
    assert held <= sum(told.held.values())
    assert worker.rank or held == sum(told.held.values())
    dist.destroy_process_group()


def test_pieces_are_planned_as_fsdp_cuts_them(tmp_path: Path) -> None:
    together(_three_ranks, 3, tmp_path)


def packs_of(config: TrainConfig) -> tuple[list[Pack], ModelConfig]:
    materials = gather(config)
    loader = materials.build_loader(config.data, 0, "train", 0, 1)
    try:
        return next(iter(loader)), materials.model_config
    finally:
        loader.close()


def test_flops_are_those_that_torch_counts(corpus: Path, tmp_path: Path) -> None:
    """Norms and biases have parameters and no products, padding has products: within a tenth at this size."""
    dims = {"width": 64, "layers": 3, "heads": 4, "kv_heads": 2, "ffn": 192}
    config = tiny_config(corpus, tmp_path, model__dims=dims, data__tokens=512)
    packs, model_config = packs_of(config)
    model, objective = OneFlowModel(model_config), gather(config).objective
    with flop_counter() as counter:
        for pack in packs:
            objective.loss(model, pack, objective.normalisers(pack)).total.backward()
    shape = PackShape.of(packs)
    assert shape.flops(NeededFlops.of(model)) * len(packs) == pytest.approx(
        counter.get_total_flops(), rel=0.1
    )
    assert shape.flops(NeededFlops.of(model)) == pytest.approx(
        np.mean([NeededFlops.of(model).of_pack(pack) for pack in packs])
    )


def kept_by_a_block(model: OneFlowModel, pack: Pack) -> int:
    """Bytes of distinct memory that autograd keeps for the first block, parameters apart."""
    held: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack_hook(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.dtype == torch.float32:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(pack.tokens, model.config.width, requires_grad=True)
    rope = rotary_table(pack.inputs.position_T, model.config.head_dim, 1e4)
    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda t: t):
        out = model.backbone.blocks[0](x, rope, pack.inputs.attention)
        del out
    return sum(held.values())


def test_activations_are_those_that_autograd_keeps(corpus: Path, tmp_path: Path) -> None:
    """In float32 on a CPU: there a norm keeps its square root's input, too, and buckets are padded."""
    dims = {"width": 64, "layers": 1, "heads": 4, "kv_heads": 2, "ffn": 192}
    config = tiny_config(corpus, tmp_path, model__dims=dims, data__tokens=512, compute__workers=1)
    packs, model_config = packs_of(config)
    layout, shape = Layout(config.compute, config.optimiser, 1), PackShape.of(packs[:1])
    one, two = (OneFlowModel(replace(model_config, layers=layers)) for layers in (1, 2))
    kept = [memory_of(model, layout, shape).passing["loss"]["activations"] for model in (one, two)]
    assert kept[1] - kept[0] == pytest.approx(kept_by_a_block(one, packs[0]), rel=0.15)


def test_checkpointing_and_sharding_make_it_less(corpus: Path, tmp_path: Path) -> None:
    def peak(**changes: object) -> int:
        dims = {"width": 256, "layers": 8, "heads": 8, "kv_heads": 4, "ffn": 1024}
        made = {"compute__workers": 1, "data__lanes": 4, "data__tokens": 1024, **changes}
        return plan(tiny_config(corpus, tmp_path, model__dims=dims, **made)).memory.peak

    none, selective, full = (
        peak(compute__activation_checkpointing=mode) for mode in ("none", "selective", "full")
    )
    assert none > selective > full
    assert peak(compute__workers=4) < none
    assert peak(compute__workers=4, compute__replicas=2) > peak(compute__workers=4)


def test_the_budget_is_told_by_steps_and_by_minutes(corpus: Path, tmp_path: Path) -> None:
    told = plan(tiny_config(corpus, tmp_path, budget__steps=1000))
    tokens = told.packs_per_step * told.pack.tokens
    assert told.packs_per_step == 2 and 200 < told.pack.tokens <= 256
    assert told.to_json()["tokens_per_step"] == tokens
    assert told.step_s == pytest.approx(told.flops_per_step / (2 * 67e12 * 0.4))
    assert told.hours == pytest.approx(1000 * told.step_s / 3600)
    minutes = 10 * told.step_s / 60
    short = plan(tiny_config(corpus, tmp_path, budget__steps=1000, budget__max_minutes=minutes))
    assert short.minutes_bind and short.steps in (9, 10)


def test_the_command_needs_no_corpus_and_no_memory_for_8b(tmp_path: Path) -> None:
    overrides = ["model.preset=8b", "data.corpora=[{url: /nowhere}]", "compute.precision=bf16"]
    arguments = ["train", "shapes-nano", "--plan", "--json", "--gpu", "b200"]
    result = CliRunner().invoke(app, [*arguments, *(part for o in overrides for part in ("--set", o))])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout[result.stdout.index("\n{") :])
    assert "DOES NOT FIT" not in result.stdout and told["gpu"]["name"] == "B200"
    assert told["lengths"].startswith("assumed")
    trunk = 32 * (4096 * (32 + 2 * 8) * 128 + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096) + 4096
    assert told["parameters"]["trunk"] == trunk
    assert told["memory_bytes"]["peak"] == max(told["memory_bytes"]["total"].values())


def test_an_unknown_gpu_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known: H100"):
        plan(tiny_config(corpus, tmp_path), "X1")
