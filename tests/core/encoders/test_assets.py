import json
from dataclasses import fields

import pytest
import torch
from safetensors import safe_open

from oneflow_core.encoders import LatentCodec, UnderstandingEncoder
from oneflow_core.encoders.identity import ASSETS
from oneflow_core.encoders.latent_fit import LatentRecipe, measure_latent_codec
from oneflow_core.encoders.understanding_fit import UnderstandingRecipe
from oneflow_core.encoders.understanding_report import measure_understanding_encoder

OWN = ("latent_codec", "understanding_encoder", "tokenizer")
FITTED = (("latent_codec", LatentRecipe), ("understanding_encoder", UnderstandingRecipe))


def test_the_assets_are_small_and_hold_no_code() -> None:
    files = [f for name in OWN for f in (ASSETS / name).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 8_000_000
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".txt", ".md"}


@pytest.mark.parametrize(("name", "recipe"), FITTED)
def test_weights_are_float16_with_recipe_and_report_beside_them(name: str, recipe: type) -> None:
    (weights,) = (ASSETS / name).glob("*.safetensors")
    with safe_open(weights, "pt") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.float16}  # noqa: SIM118
    stated = json.loads((ASSETS / name / "recipe.json").read_text())
    assert set(stated) == {f.name for f in fields(recipe)}


def test_the_embedded_codec_is_as_good_as_its_report_says() -> None:
    codec = LatentCodec.from_pretrained("embedded")
    report = json.loads((ASSETS / "latent_codec" / "report.json").read_text())
    assert report["id"] == codec.id
    measured = measure_latent_codec(codec, 60)
    for kind in ("shapes", "photographs", "graphics"):
        assert measured[kind]["psnr"] == pytest.approx(report[kind]["psnr"], abs=2.5)
    assert measured["shapes"]["psnr"] > 32 and measured["photographs"]["psnr"] > 24
    assert measured["shapes"]["psnr_of_noisy_latents"] > 32
    assert abs(measured["shapes"]["latent_mean"]) < 0.05 and abs(measured["shapes"]["latent_std"] - 1) < 0.2


def test_the_embedded_understanding_encoder_knows_what_is_where() -> None:
    encoder = UnderstandingEncoder.from_pretrained("embedded")
    report = json.loads((ASSETS / "understanding_encoder" / "report.json").read_text())
    assert report["id"] == encoder.id and (encoder.patches, encoder.dim) == (16, 128)
    measured = measure_understanding_encoder(encoder, 90, train=1500, gallery=90)
    assert all(share > 0.9 for share in measured["probe"].values())
    assert measured["retrieval"]["own_over_one_change"] > 0.9
    assert measured["retrieval"]["text_of_image"] > 0.7
