"""The loader's benchmarks at a tiny size: what they tell, and that they notice what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneflow_core.data.loader import LoaderConfig
from oneflow_core.data.manifest import Manifest
from workflows.bench import loader, peers, resume, scale
from workflows.bench.child import Child
from workflows.bench.data_wait import write_documents
from workflows.bench.loader_corpus import Kind, write_corpus
from workflows.bench.plan import ASSUMED, PAIRS, table
from workflows.errors import OneFlowError

KINDS = {"with": Kind((4, 2, 2), (3, 5), 12, 2), "without": Kind((4, 2, 2), None, 12, 2)}


def test_the_loader_tells_the_contracts_keys() -> None:
    told = loader.measure(1, KINDS, None, steps=0, s3=False).to_json()
    assert {"name", "ours", "peer", "unit", "runs", "machine", "versions"} <= set(told)
    for key in ("ratio_to_webdataset", "ratio_to_best", "ratio_to_webdataset_shuffled"):
        assert told[key] > 0
    assert told["ratio_to_webdataset"] == pytest.approx(told["ratio"])
    assert told["best"] in ("webdataset", "tarfile")
    assert set(told["kinds"]["sequential"]["ours"]) == set(KINDS)
    json.dumps(told)


def test_sides_that_read_other_samples_are_found(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a", "a", KINDS["with"])
    write_corpus(tmp_path / "b", "b", KINDS["with"])
    with Child(
        "workflows.bench.loader_sides:ours", {"places": {"local": {"k": str(tmp_path / "a")}}}
    ) as ours:
        other = {"places": {"local": {"k": str(tmp_path / "b")}}}
        with Child("workflows.bench.loader_sides:plain_tarfile", other) as theirs:
            sides = {"ours": ours, "tarfile": theirs}
            with pytest.raises(OneFlowError, match="tarfile reads other samples of k"):
                loader._checked(sides, {"sequential": ["ours", "tarfile"]}, ["k"])


def test_peers_read_what_they_were_given(tmp_path: Path) -> None:
    place = peers.standing(pins=loader.PINS)
    if place is None:
        pytest.skip(
            "litdata and MosaicML's streaming are not in build/peers; oneflow bench loader installs them"
        )
    told = loader.measure(1, KINDS, place, steps=0, s3=False).to_json()
    assert set(told["kinds"]["sequential"]) == {*loader.SIDES, *loader.PEERS}


def test_resuming_is_identical_and_its_state_small() -> None:
    config = LoaderConfig(tokens=2048, lanes=4, seed=1)
    told = resume.measure(1, Kind((4, 2, 2), None, 400, 4), (10, 100), config).to_json()
    assert told["identical"] is True
    assert set(told["median_s"]) == {"real", "10", "100"}
    assert max(told["state_bytes"].values()) < 300


def test_the_scale_tells_how_figures_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "plan", lambda: {})
    told = scale.measure(1, (100, 2000)).to_json()
    assert told["samples"] == 2_000_000
    assert set(told["exponents"]) == set(scale.FIGURES) and set(told["shards"]) == {"100", "2000"}
    assert told["shards"]["2000"]["state_bytes"] < 700


def test_the_plan_adds_up() -> None:
    measured = {
        "latent_bytes": 1000.0,
        "features_bytes": 0.0,
        "sample_tar_bytes": 2000.0,
        "index_bytes": 100.0,
        "manifest_bytes_a_shard": 70.0,
        "ingest_cpu_us": 3600.0,
        "decode_cpu_us": 3600.0,
        "shard_cpu_us": 3600.0,
        "read_cpu_us": 3600.0,
        "vae_flops": 3e11,
        "vit_flops": 0.0,
    }
    assumed = {**ASSUMED, "kept_share": 0.5, "duplicate_share": 0.5, "vae_share_of_peak": 0.3}
    assumed |= {"gpu_peak_flops": 1e15, "job_overhead": 1.0, "shard_bytes": 1e9}
    told = table(measured, assumed)
    assert (told["documents"], told["images_encoded"]) == (PAIRS / 2, PAIRS / 4)
    assert told["latents_tb"] == pytest.approx(0.1)
    assert told["shards_tb"] == pytest.approx(0.4) and told["shards"] == pytest.approx(400)
    assert told["gpu_hours"] == pytest.approx(PAIRS / 4 * 1e-3 / 3600)
    assert told["ingest_cpu_hours"] == pytest.approx(400)
    assert told["decode_cpu_hours"] == pytest.approx(100)


def test_the_demos_mixture_is_drawn(tmp_path: Path) -> None:
    manifest: Manifest = write_documents(tmp_path / "shapes", 40)
    assert manifest.totals.samples == 40 and len(manifest.shards) == 4
