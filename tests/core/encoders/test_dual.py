"""Dual encoders against transformers' own forward pass, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from oneflow_core.encoders import DualEncoder, EncoderError
from tests.core.tiny_dual import CAPTIONS, MEAN_STD, WORDS, pictures, tiny_clip, tiny_siglip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("dual") / "Tiny-CLIP", seed=1)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_siglip(tmp_path_factory.mktemp("dual") / "tiny-siglip", seed=1)


def squares(images: list[np.ndarray]) -> torch.Tensor:
    """What the small SigLIP's preprocessor says, by PIL and numpy alone: float32 [N, 3, 32, 32]."""
    resized = [np.asarray(Image.fromarray(i).resize((32, 32), Image.Resampling.BICUBIC)) for i in images]
    normal = (np.stack(resized) / 255.0 - MEAN_STD["image_mean"]) / MEAN_STD["image_std"]
    return torch.from_numpy(normal).float().permute(0, 3, 1, 2)


def forward(model: Any, tokenizer: Any, **images: torch.Tensor) -> torch.Tensor:
    """Logits per image of the whole model, the captions cut and padded by the tokenizer alone."""
    options = {"padding": "max_length", "truncation": True, "max_length": WORDS, "return_tensors": "pt"}
    with torch.no_grad():
        return model.eval()(**tokenizer(CAPTIONS, **options), **images).logits_per_image.double()


def cosines(encoder: DualEncoder, images: list[np.ndarray]) -> torch.Tensor:
    return encoder.embed_images(images) @ encoder.embed_texts(CAPTIONS)[0].T


def test_cosines_of_a_siglip_are_its_logits_without_scale_and_bias(siglip: Path) -> None:
    images, encoder = pictures(5), DualEncoder.from_pretrained(siglip)
    model, tokenizer = (
        kind.from_pretrained(siglip) for kind in (transformers.SiglipModel, transformers.AutoTokenizer)
    )
    logits = forward(model, tokenizer, pixel_values=squares(images))
    wanted = (logits - model.logit_bias.item()) / model.logit_scale.exp().item()
    torch.testing.assert_close(cosines(encoder, images), wanted, atol=2e-6, rtol=0)
    matched = encoder.match(cosines(encoder, images))
    torch.testing.assert_close(matched, torch.sigmoid(logits), atol=2e-6, rtol=0)
    assert (encoder.kind, encoder.id.split("@")[0]) == ("siglip", "tiny-siglip")


def test_cosines_of_a_naflex_siglip_2_are_those_of_transformers(tmp_path: Path) -> None:
    images, encoder = pictures(5), DualEncoder.from_pretrained(tiny_siglip(tmp_path, seed=1, naflex=True))
    processor = transformers.Siglip2ImageProcessorPil.from_pretrained(tmp_path)
    model, tokenizer = (
        kind.from_pretrained(tmp_path) for kind in (transformers.Siglip2Model, transformers.AutoTokenizer)
    )
    inputs = processor([Image.fromarray(i) for i in images], return_tensors="pt")
    assert len({tuple(shape) for shape in inputs["spatial_shapes"].tolist()}) > 1
    wanted = (forward(model, tokenizer, **inputs) - model.logit_bias.item()) / model.logit_scale.exp().item()
    torch.testing.assert_close(cosines(encoder, images), wanted, atol=2e-6, rtol=0)
    assert encoder.kind == "siglip"


def test_cosines_of_a_clip_are_its_logits_without_scale(clip: Path) -> None:
    images, encoder = pictures(5), DualEncoder.from_pretrained(clip)
    processor = transformers.CLIPProcessor.from_pretrained(clip)
    pixels = processor(images=[Image.fromarray(i) for i in images], return_tensors="pt")["pixel_values"]
    model = transformers.CLIPModel.from_pretrained(clip)
    wanted = forward(model, processor.tokenizer, pixel_values=pixels) / model.logit_scale.exp().item()
    torch.testing.assert_close(cosines(encoder, images), wanted, atol=2e-6, rtol=0)
    with pytest.raises(EncoderError, match="is a CLIP, which gives no probability"):
        encoder.match(wanted)


def test_a_long_text_is_cut_before_its_end_of_text(clip: Path) -> None:
    encoder, tokenizer = DualEncoder.from_pretrained(clip), transformers.AutoTokenizer.from_pretrained(clip)
    inputs, cut = encoder.texts(CAPTIONS)
    whole = tokenizer(CAPTIONS[-1])["input_ids"]
    assert len(whole) > WORDS and cut == 1
    assert inputs["input_ids"][-1].tolist() == [*whole[: WORDS - 1], tokenizer.eos_token_id]
    assert encoder.texts(CAPTIONS[:-1])[1] == 0 and encoder.texts([CAPTIONS[-1]] * 3)[1] == 3


def test_a_picture_three_pixels_high_is_not_taken_for_one_of_three_channels(siglip: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 20, 3), dtype=np.uint8)
    model = transformers.SiglipModel.from_pretrained(siglip).eval()
    with torch.inference_mode():
        wanted = model.get_image_features(pixel_values=squares([image])).pooler_output.double()
    found = DualEncoder.from_pretrained(siglip).embed_images([image])
    torch.testing.assert_close(found, wanted / wanted.norm(), atol=2e-6, rtol=0)


def test_the_embedded_siglip_agrees_with_its_understanding_encoder() -> None:
    from oneflow_core.encoders import UnderstandingEncoder

    images, texts = np.stack([np.resize(i, (64, 64, 3)) for i in pictures(4)]), CAPTIONS[:4]
    encoder = DualEncoder.from_pretrained("embedded")
    found = encoder.embed_images(images) @ encoder.embed_texts(texts)[0].T
    wanted = UnderstandingEncoder.from_pretrained("embedded").score(images, texts)
    torch.testing.assert_close(found, wanted.double(), atol=2e-6, rtol=0)
    assert encoder.id.startswith("oneflow-siglip-64@") and encoder.texts(["a red circle " * 40])[1] == 1


def test_the_id_tells_weights_preprocessing_and_tokenizers_apart(siglip: Path, tmp_path: Path) -> None:
    def id_with(file: str, change: Callable[[Any], Any]) -> str:
        copy = tmp_path / file / siglip.name
        shutil.copytree(siglip, copy)
        if file == "model.safetensors":
            save_file(change(load_file(copy / file)), copy / file, {"format": "pt"})
        else:
            (copy / file).write_text(json.dumps(change(json.loads((copy / file).read_text()))))
        return DualEncoder.from_pretrained(copy).id

    def swapped(stated: dict[str, Any]) -> dict[str, Any]:
        vocabulary = stated["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        return stated

    own = DualEncoder.from_pretrained(siglip).id
    assert id_with("config.json", lambda stated: stated | {"architectures": None}) == own
    ids = {
        own,
        id_with("model.safetensors", lambda weights: weights | {"logit_bias": weights["logit_bias"] + 1e-3}),
        id_with("preprocessor_config.json", lambda stated: stated | {"resample": 2}),
        id_with("tokenizer.json", swapped),
    }
    assert len(ids) == 4 and {i.split("@")[0] for i in ids} == {"tiny-siglip"}


def test_weights_that_would_have_to_be_unpickled_are_refused(clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pickled"
    shutil.copytree(clip, copy)
    (copy / "model.safetensors").unlink()
    torch.save(transformers.CLIPModel.from_pretrained(clip).state_dict(), copy / "pytorch_model.bin")
    assert transformers.CLIPModel.from_pretrained(copy, use_safetensors=False) is not None
    with pytest.raises(EncoderError, match=r"safetensors"):
        DualEncoder.from_pretrained(copy)


def test_what_is_no_dual_encoder_is_refused(clip: Path, siglip: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no CLIP or SigLIP could be loaded from .*nowhere"):
        DualEncoder.from_pretrained(tmp_path / "nowhere")
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(EncoderError, match="holds a bert model"):
        DualEncoder.from_pretrained(tmp_path / "bert")
    transformers.CLIPModel.from_pretrained(clip).vision_model.save_pretrained(tmp_path / "tower")
    with pytest.raises(EncoderError, match="holds a clip_vision_model"):
        DualEncoder.from_pretrained(tmp_path / "tower")


def test_parts_that_are_missing_are_not_made_up(clip: Path, siglip: Path, tmp_path: Path) -> None:
    """transformers makes a tokenizer of specials alone where its files are missing, and draws weights at random."""
    for directory in (clip, siglip):
        for name, message in (
            ("tokenizer.json", "put the tokenizer's own files"),
            ("preprocessor_config.json", "name a directory or a hub"),
            ("config.json", "name a directory or a hub"),
        ):
            copy = tmp_path / directory.name / name
            shutil.copytree(directory, copy)
            (copy / name).unlink()
            with pytest.raises(EncoderError, match=message):
                DualEncoder.from_pretrained(copy)
    copy = tmp_path / "halved"
    shutil.copytree(siglip, copy)
    weights = load_file(copy / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "head.bias" not in k}, copy / "model.safetensors")
    with pytest.raises(EncoderError, match="lacks weights .*text_model.head.bias"):
        DualEncoder.from_pretrained(copy)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3)), "image 1 must be .* not float64"),
        (np.zeros((8, 8), np.uint8), r"not uint8 \(8, 8\)"),
        (np.zeros((3, 8, 8), np.uint8), r"not uint8 \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"not uint8 \(0, 8, 3\)"),
        (Image.new("RGB", (8, 8)), "not Image"),
    ],
)
def test_images_of_another_layout_are_refused(siglip: Path, image: Any, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        DualEncoder.from_pretrained(siglip).embed_images([*pictures(1), image])


def test_texts_that_are_none_are_refused(siglip: Path) -> None:
    encoder = DualEncoder.from_pretrained(siglip)
    with pytest.raises(EncoderError, match="text 1 is 3, of int"):
        encoder.embed_texts(["a", 3])  # type: ignore[list-item]
    with pytest.raises(EncoderError, match="text 0 is no valid Unicode"):
        encoder.embed_texts(["\ud800"])


def test_numbers_that_are_not_finite_are_refused(siglip: Path, tmp_path: Path) -> None:
    shutil.copytree(siglip, tmp_path, dirs_exist_ok=True)
    model = transformers.SiglipModel.from_pretrained(tmp_path)
    model.text_model.head.bias.data[0] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="not finite"):
        DualEncoder.from_pretrained(tmp_path).embed_texts(["a"])
