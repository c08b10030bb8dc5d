from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.encoders import EncoderError, LatentCodec
from oneflow_core.encoders.latent_fit import new_vae

SD3 = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
"""The published configuration of Stable Diffusion 3's autoencoder; FLUX.1's has the same network."""
REAL = {
    "stable-diffusion-3-medium-diffusers": (1.5305, 0.0609),
    "FLUX.1-dev": (0.3611, 0.1159),
}
MIXED = settings(max_examples=10, deadline=None)


def small_vae(seed: int = 0, scale: float = 1.7, shift: float = 0.3) -> AutoencoderKL:
    torch.manual_seed(seed)
    return new_vae((8, 8, 8, 8), 2, scale, shift)


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return LatentCodec(small_vae(), "small")


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_encode_is_the_posterior_mean_shifted_and_scaled(codec: LatentCodec) -> None:
    images = pictures(3)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mean = small_vae().encode(pixels).latent_dist.mean
    torch.testing.assert_close(codec.encode(images), (mean - 0.3) * 1.7, atol=1e-5, rtol=1e-5)


def test_decode_undoes_scale_and_shift(codec: LatentCodec) -> None:
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        truth = small_vae().decode(latents / 1.7 + 0.3).sample
    expected = ((truth + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(codec.decode(latents).astype(int) - expected.astype(int)).max() <= 1


def test_encode_is_deterministic_and_does_not_depend_on_the_batch(codec: LatentCodec) -> None:
    images = pictures(37)
    together = codec.encode(images)
    assert torch.equal(together, codec.encode(images))
    alone = torch.cat([codec.encode(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@MIXED
@given(n=st.integers(0, 3), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_shapes_of_any_multiple_of_eight(codec: LatentCodec, n: int, rows: int, columns: int) -> None:
    latents = codec.encode(pictures(n, rows * 8, columns * 8))
    assert latents.shape == (n, codec.channels, rows, columns) and latents.dtype == torch.float32
    decoded = codec.decode(latents)
    assert decoded.shape == (n, rows * 8, columns * 8, 3) and decoded.dtype == np.uint8


def test_the_id_survives_saving_and_changes_with_the_numbers(codec: LatentCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path / "a")
    again = LatentCodec.from_pretrained(tmp_path / "a")
    assert again.id == codec.id and again.id.startswith("small@")
    again.save_pretrained(tmp_path / "b")
    assert LatentCodec.from_pretrained(tmp_path / "b").id == codec.id
    torch.testing.assert_close(again.encode(pictures(2)), codec.encode(pictures(2)), atol=1e-6, rtol=0)
    changed = small_vae()
    changed.decoder.conv_in.bias.data[3] += 1e-3
    others = {LatentCodec(vae, "small").id for vae in (changed, small_vae(scale=1.71), small_vae(shift=0.0))}
    assert len(others | {codec.id}) == 4


def test_float16_files_keep_the_id_of_the_values_they_hold(tmp_path: Path) -> None:
    half = LatentCodec(small_vae().half(), "half")
    half.save_pretrained(tmp_path)
    full = LatentCodec.from_pretrained(tmp_path)
    assert full.dtype == torch.float32 and full.id == half.id
    full.save_pretrained(tmp_path / "again")
    sizes = [
        (d / "diffusion_pytorch_model.safetensors").stat().st_size for d in (tmp_path, tmp_path / "again")
    ]
    assert sizes[0] == sizes[1] and LatentCodec.from_pretrained(tmp_path / "again").id == half.id


@pytest.mark.parametrize(
    ("images", "part"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "float32"),
        (np.zeros((64, 64, 3), np.uint8), "(64, 64, 3)"),
        (np.zeros((1, 64, 64, 4), np.uint8), "convert to RGB"),
        (np.zeros((1, 60, 64, 3), np.uint8), "64x60"),
        ([[1]], "list"),
    ],
)
def test_images_of_another_layout_are_refused(codec: LatentCodec, images: object, part: str) -> None:
    with pytest.raises(EncoderError, match=part.replace("(", r"\(").replace(")", r"\)")):
        codec.encode(images)  # type: ignore[arg-type]


def test_latents_of_another_layout_are_refused(codec: LatentCodec) -> None:
    with pytest.raises(EncoderError, match="16, h, w"):
        codec.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(EncoderError, match="not finite"):
        codec.decode(torch.full((1, 16, 8, 8), float("nan")))


def test_a_directory_without_a_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="embedded"):
        LatentCodec.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(EncoderError, match="no AutoencoderKL"):
        LatentCodec.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", REAL)
def test_the_real_configurations_load_as_a_pipeline_s_subfolder(name: str, tmp_path: Path) -> None:
    scale, shift = REAL[name]
    torch.manual_seed(0)
    with torch.device("meta"):
        vae = AutoencoderKL(**SD3, scaling_factor=scale, shift_factor=shift)
    assert sum(p.numel() for p in vae.parameters()) == 83_819_683
    vae.to_empty(device="cpu").to(torch.bfloat16)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.fill_(0.5) if parameter.ndim == 1 else parameter.normal_(0, 0.02)
    vae.save_pretrained(tmp_path / name / "vae")
    codec = LatentCodec.from_pretrained(tmp_path / name, subfolder="vae", dtype=torch.bfloat16)
    assert (codec.channels, codec.downsample, codec.scale, codec.shift) == (16, 8, scale, shift)
    assert codec.dtype == torch.bfloat16 and codec.id.startswith(f"{name.lower()}@")
    images = pictures(1, 32, 48)
    latents = codec.encode(images)
    assert latents.shape == (1, 16, 4, 6) and latents.dtype == torch.float32
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).to(torch.bfloat16)
    with torch.no_grad():
        mean = vae.eval().encode(pixels).latent_dist.mean.float()
    torch.testing.assert_close(latents, (mean - shift) * scale, atol=0.05, rtol=0.05)
    assert codec.decode(latents).shape == (1, 32, 48, 3)
