import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from oneflow_core.encoders import LatentCodec, UnderstandingEncoder, imagery
from oneflow_core.encoders.assets import replace_directory, write_latent_codec, write_understanding_encoder
from oneflow_core.encoders.latent_fit import (
    LatentRecipe,
    annealed,
    fit_latent_codec,
    measure_latent_codec,
    psnr,
)
from oneflow_core.encoders.understanding_fit import UnderstandingRecipe, fit_understanding_encoder
from oneflow_core.encoders.understanding_report import measure_understanding_encoder

TINY = {"widths": (8, 12, 16, 24), "warmup": 5, "average": 0.9, "rate": 6e-3}


def test_psnr_in_closed_form() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 255) == 0.0
    assert psnr(black, black + 51) == pytest.approx(20 * math.log10(5), abs=0.01)


def test_the_rate_falls_to_zero() -> None:
    assert annealed(0.0) == 1.0 and annealed(0.5) == pytest.approx(0.5) and annealed(1.2) == 0.0


def test_a_small_budget_improves_the_codec_and_is_written_whole(tmp_path: Path) -> None:
    recipe = LatentRecipe(steps=50, **TINY)
    before, codec = fit_latent_codec(LatentRecipe(steps=1, **TINY)), fit_latent_codec(recipe)
    first, last = measure_latent_codec(before, 24), measure_latent_codec(codec, 24)
    assert last["shapes"]["psnr"] > first["shapes"]["psnr"] + 1.5
    assert last["photographs"]["psnr"] > first["photographs"]["psnr"] + 1.5
    assert abs(last["shapes"]["latent_mean"]) < 0.1 and abs(last["shapes"]["latent_std"] - 1) < 0.1
    write_latent_codec(tmp_path / "codec", codec, recipe, last)
    assert LatentCodec.from_pretrained(tmp_path / "codec").id == codec.id
    assert json.loads((tmp_path / "codec" / "recipe.json").read_text())["steps"] == 50
    assert json.loads((tmp_path / "codec" / "recipe.json").read_text())["minutes"] is None


def test_the_same_seed_makes_the_same_codec() -> None:
    recipe = LatentRecipe(steps=2, **TINY)
    assert fit_latent_codec(recipe).id == fit_latent_codec(recipe).id


def test_a_small_budget_improves_the_understanding_encoder(tmp_path: Path) -> None:
    recipe = UnderstandingRecipe(
        width=48,
        layers=2,
        text_width=32,
        text_layers=1,
        heads=2,
        steps=60,
        warmup=10,
        pairs=8,
        photographs=2,
        graphics=2,
    )
    losses: list[dict[str, float]] = []
    model = fit_understanding_encoder(recipe, lambda _, parts: losses.append(parts), every=1)
    for name in ("sigmoid", "located", "appearance"):
        early, late = (float(np.mean([parts[name] for parts in few])) for few in (losses[:5], losses[-5:]))
        assert late < (0.9 if name == "sigmoid" else 0.8) * early, name
    write_understanding_encoder(tmp_path / "e", model, recipe, lambda e: {"id": e.id})
    encoder = UnderstandingEncoder.from_pretrained(tmp_path / "e")
    assert json.loads((tmp_path / "e" / "report.json").read_text())["id"] == encoder.id
    report = measure_understanding_encoder(encoder, 30, train=200, gallery=30)
    assert report["probe"]["occupied"] > 0.8
    assert all(0 <= share <= 1 for k, share in report["retrieval"].items() if k != "gallery")


def test_a_failed_write_leaves_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "asset"
    replace_directory(target, lambda d: (d / "a").touch())

    def fail(directory: Path) -> None:
        (directory / "b").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_directory(target, fail)
    assert [p.name for p in target.iterdir()] == ["a"] and [p.name for p in tmp_path.iterdir()] == ["asset"]
    replace_directory(target, lambda d: (d / "c").touch())
    assert [p.name for p in target.iterdir()] == ["c"] and [p.name for p in tmp_path.iterdir()] == ["asset"]


def test_pictures_are_drawn_as_asked_and_the_same_for_a_seed() -> None:
    for make in (imagery.shapes, imagery.photographs, imagery.graphics):
        first, again = (make(np.random.default_rng(3), 4) for _ in range(2))
        assert first.shape == (4, 64, 64, 3) and first.dtype == np.uint8
        assert np.array_equal(first, again) and len(np.unique(first.reshape(4, -1), axis=0)) > 1
    windows = imagery.windows(np.random.default_rng(0), imagery.graphics(np.random.default_rng(0), 2), 32)
    assert windows.shape == (2, 32, 32, 3)


def test_held_out_photographs_are_other_photographs() -> None:
    assert not set(imagery.PHOTOGRAPHS["train"]) & set(imagery.PHOTOGRAPHS["heldout"])


def test_without_photographs_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagery, "_photographs", lambda part: ())
    with pytest.raises(FileNotFoundError, match="scikit-image"):
        fit_latent_codec(LatentRecipe(steps=1, **TINY))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
