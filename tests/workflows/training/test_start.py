"""Stage 2 starts from a registered stage 1: its weights bit for bit, named for good, refused where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from safetensors.torch import load_file

from tests.workflows.training.corpus import instruction, tiny_config, write_corpus
from tests.workflows.training.test_distributed import launch
from workflows.errors import OneFlowError, UsageError
from workflows.training.best import load_best
from workflows.training.config import TrainConfig
from workflows.training.loop import Trainer
from workflows.training.materials import gather
from workflows.training.parallel import Worker, whole
from workflows.training.register import Registered, export_and_register
from workflows.training.start import pinned
from workflows.training.train import key_of_run
from workflows.training.worker import run_root, work


@dataclass(frozen=True)
class Site:
    """A corpus for each stage, and a store of MLflow with stage 1 in it."""

    place: Path
    first: Registered
    parent: dict[str, torch.Tensor]
    """The weights of version 1, as its file holds them."""
    directory: Path
    """Version 1's directory."""

    def config(self, **changes: Any) -> TrainConfig:
        """Stage 2."""
        given = {"model__start": "models:/stage1@candidate", **changes}
        return config(self.place, "instruct", "stage2", **given)


def config(place: Path, corpus: str, name: str, **changes: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "name": name,
        "compute__workers": 1,
        "budget__steps": 4,
        "data__holdout": 0.2,
        "registry__name": name,
        "registry__codec": str(place / "pairs" / "codec"),
        "registry__encoder": str(place / "pairs" / "encoder"),
        "tracking__experiment": "recipes",
    }
    return tiny_config(place / corpus, place / "runs", **{**given, **changes})


def trained(config: TrainConfig) -> tuple[Registered, str]:
    """What `oneflow train` does, in this process alone; the version and the run."""
    work(config)
    materials = gather(config)
    settled = pinned(config, materials.start)
    root = run_root(config, materials.run_key)
    registered, run_id = export_and_register(settled, materials, materials.run_key, root)
    assert registered and run_id
    return registered, run_id


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("site")
    write_corpus(place / "pairs", real=True)
    write_corpus(place / "instruct", real=True, make=instruction)
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    MlflowClient().create_experiment("recipes", artifact_location=str(place / "artifacts"))
    first, _ = trained(config(place, "pairs", "stage1"))
    torch.distributed.destroy_process_group()
    directory = Path(download_artifacts(artifact_uri="models:/stage1/1", dst_path=str(place / "stage1")))
    yield Site(place, first, load_file(directory / "model" / "model.safetensors"), directory)
    patch.undo()


def test_stage_2_begins_at_the_parents_weights_and_says_so_everywhere(site: Site, alone: Worker) -> None:
    materials = gather(site.config())
    trainer = Trainer(site.config(), materials, alone, str(site.place / "unused"))
    trainer._restore()
    for name, tensor in trainer.optimiser.tensors().items():
        kind, _, of = name.partition(".")
        if kind in ("model", "ema"):
            assert torch.equal(whole(tensor), site.parent[of]), name
    assert not any(
        torch.equal(tensor, site.parent[name])
        for name, tensor in materials.build_model(site.config().seed).state_dict().items()
        if "blocks" in name and "norm" not in name
    )

    second, run_id = trained(site.config())
    client = MlflowClient()
    digest = client.get_model_version("stage1", "1").tags["oneflow.model_sha256"]
    wanted = {"oneflow.parent_model": "models:/stage1/1", "oneflow.parent_weights_sha256": digest}
    assert wanted.items() <= client.get_run(run_id).data.tags.items()
    assert wanted.items() <= client.get_model_version(second.name, second.version).tags.items()
    assert "oneflow.parent_model" not in client.get_model_version("stage1", "1").tags

    began = site.config(model__start="models:/stage1/1")
    assert key_of_run(began, run_id, gather(began).start) == gather(began).run_key
    with pytest.raises(UsageError, match="set model.start=models:/stage1/1"):
        key_of_run(began, run_id, None)


def test_an_alias_that_moves_makes_another_run(site: Site, alone: Worker) -> None:
    key = gather(site.config()).run_key
    assert gather(site.config(model__start="models:/stage1/1")).run_key == key
    begun = pinned(site.config(), gather(site.config()).start)
    assert gather(config(site.place, "instruct", "stage2")).run_key != key
    trained(config(site.place, "pairs", "stage1", seed=1))
    client = MlflowClient()
    assert client.get_model_version_by_alias("stage1", "candidate").version == 2
    try:
        assert gather(site.config()).run_key != key
        assert gather(begun).run_key == key
        with pytest.raises(UsageError, match="name the version that has these weights"):
            gather(site.config(model__start_sha256=begun.model.start_sha256))
    finally:
        client.set_registered_model_alias("stage1", "candidate", "1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__dims__width": 64}, "width: the run has 64, the start 32"),
        ({"objective__kind": "transfusion"}, "objective: the run has 'transfusion', the start 'oneflow'"),
        ({"model__dims__latent_scale": 2.0}, "latent_scale: the run has 2.0, the start 1.0"),
    ],
)
def test_what_does_not_fit_is_refused_by_both_names(site: Site, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        gather(site.config(**changes))


def test_codec_and_tokenizer_of_another_kind_are_refused(site: Site) -> None:
    index = site.directory / "model_index.json"
    held = json.loads(index.read_text())
    for field, part in (("latent_codec_id", "latent codec"), ("tokenizer_digest", "tokenizer")):
        index.write_text(json.dumps({**held, field: "other@0"}))
        with pytest.raises(UsageError, match=f"{part}: the run has .*, the start other@0"):
            gather(site.config(model__start=str(site.directory)))
    index.write_text(json.dumps(held))


def test_two_workers_begin_at_a_directory_and_a_damaged_file_is_refused(site: Site, tmp_path: Path) -> None:
    """At a rate of nothing one step leaves what was loaded, put together again from the pieces of both."""
    still = {
        "optimiser__lr": 1e-30,
        "optimiser__weight_decay": 0.0,
        "budget__steps": 1,
        "compute__workers": 2,
    }
    start = {"model__start": f"file://{site.directory}", "checkpoint__url": str(tmp_path / "runs")}
    run = site.config(**still, **start)
    launch(run, tmp_path, 2).finish()
    [root] = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    _, best = load_best(str(root))
    assert best.kinds().keys() == site.parent.keys()
    for name, tensor in site.parent.items():
        torch.testing.assert_close(best.read(name), tensor, rtol=0, atol=1e-25)

    file = site.directory / "model" / "model.safetensors"
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[:-1] + bytes([whole_file[-1] ^ 1]))
    with pytest.raises(AssertionError, match="put the files back"):
        launch(site.config(**still, **start, seed=5), tmp_path, 2).finish()
    file.write_bytes(whole_file)


def test_what_is_not_there_is_told(site: Site) -> None:
    for start in ("models:/none@candidate", "models:/stage1/77", "/nowhere/at/all", "file:///nowhere"):
        with pytest.raises(OneFlowError, match=start):
            gather(site.config(model__start=start))
    with pytest.raises(ValueError, match="a run starts from one of them"):
        site.config(model__llama="somewhere")
