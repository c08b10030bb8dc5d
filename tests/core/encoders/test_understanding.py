import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from oneflow_core.encoders import EncoderError, UnderstandingEncoder
from oneflow_core.encoders.preprocessing import Preprocessing
from oneflow_core.encoders.understanding_fit import UnderstandingRecipe, new_siglip

SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 512,
    "patch_size": 16,
}
"""The image tower of google/siglip2-so400m-patch16-512, which transformers loads with the SigLIP classes."""
SMALL = UnderstandingRecipe(width=32, layers=2, text_width=32, text_layers=1, heads=2)
WORDS = ["a red circle", "two blue stars", "a red circle at the top"]


def pictures(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    import tokenizers

    vocabulary = {
        w: i for i, w in enumerate(["<pad>", "<unk>", *sorted({w for t in WORDS for w in t.split()})])
    }
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP of two towers with a tokenizer of its own, as a hub repository holds them."""
    directory = tmp_path_factory.mktemp("siglip") / "Tiny-SigLIP"
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    new_siglip(SMALL, len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    stated = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps(stated))
    return directory


def own_pixels(images: np.ndarray) -> torch.Tensor:
    resized = np.stack(
        [np.asarray(Image.fromarray(i).resize((64, 64), Image.Resampling.BILINEAR)) for i in images]
    )
    normal = (resized / 255.0 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    return torch.from_numpy(normal).float().permute(0, 3, 1, 2)


def test_features_are_the_image_tower_s_last_hidden_state(whole: Path) -> None:
    encoder = UnderstandingEncoder.from_pretrained(whole)
    images = pictures(3, 48, 80)
    model = transformers.SiglipModel.from_pretrained(whole).eval()
    with torch.no_grad():
        truth = model.vision_model(pixel_values=own_pixels(images)).last_hidden_state
    features = encoder.encode(images)
    assert features.shape == (3, encoder.patches, encoder.dim) == (3, 16, 32)
    torch.testing.assert_close(features, truth, atol=1e-5, rtol=1e-4)


def test_scores_are_the_cosines_of_the_whole_model(whole: Path) -> None:
    images = pictures(2, 48, 80)
    model, tokenizer = transformers.SiglipModel.from_pretrained(whole).eval(), word_tokenizer()
    ids = tokenizer(WORDS, padding="max_length", max_length=SMALL.positions, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=own_pixels(images))
        truth = (output.logits_per_image - model.logit_bias) / model.logit_scale.exp()
    torch.testing.assert_close(
        UnderstandingEncoder.from_pretrained(whole).score(images, WORDS), truth, atol=1e-5, rtol=1e-4
    )


def test_encode_is_deterministic_and_does_not_depend_on_the_batch(whole: Path) -> None:
    encoder, images = UnderstandingEncoder.from_pretrained(whole), pictures(70)
    together = encoder.encode(images)
    assert torch.equal(together, encoder.encode(images))
    alone = torch.cat([encoder.encode(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert encoder.encode(images[:0]).shape == (0, 16, 32)


def test_a_saved_copy_has_the_id_and_no_text_tower(whole: Path, tmp_path: Path) -> None:
    encoder = UnderstandingEncoder.from_pretrained(whole)
    encoder.save_pretrained(tmp_path / "copy")
    copy = UnderstandingEncoder.from_pretrained(tmp_path / "copy")
    assert copy.id == encoder.id and copy.id.startswith("tiny-siglip@")
    torch.testing.assert_close(copy.encode(pictures(2)), encoder.encode(pictures(2)))
    with pytest.raises(EncoderError, match="no text tower"):
        copy.score(pictures(1), WORDS)


def test_the_id_changes_with_weights_and_preprocessing(whole: Path) -> None:
    vision = transformers.SiglipVisionModel.from_pretrained(whole)
    plain, bilinear = Preprocessing(64, 16), Preprocessing(64, 16, resample=2)
    ids = {UnderstandingEncoder(vision, plain, "x").id, UnderstandingEncoder(vision, bilinear, "x").id}
    vision.post_layernorm.bias.data[0] += 1e-3
    assert len(ids | {UnderstandingEncoder(vision, plain, "x").id}) == 3


def test_naflex_patches_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers.image_utils import PILImageResampling

    processor = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
    config = transformers.Siglip2VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_patches=16,
        patch_size=16,
    )
    torch.manual_seed(0)
    transformers.Siglip2VisionModel(config).save_pretrained(tmp_path)
    encoder, images = UnderstandingEncoder.from_pretrained(tmp_path), pictures(2)
    assert encoder.preprocessing.flatten and encoder.encode(images).shape == (2, 16, 32)
    theirs: Any = processor.Siglip2ImageProcessorPil(max_num_patches=16, resample=PILImageResampling.BICUBIC)
    truth = theirs([Image.fromarray(i) for i in images], return_tensors="pt")
    for name, value in encoder.preprocessing(images).items():
        torch.testing.assert_close(value, truth[name].to(value.dtype), atol=1e-5, rtol=0)


def test_siglip2_so400m_at_its_real_width(tmp_path: Path) -> None:
    with torch.device("meta"):
        whole_size = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SO400M))
        pixels = torch.empty(1, 3, 512, 512)
        assert whole_size(pixel_values=pixels).last_hidden_state.shape == (1, 1024, 1152)
    assert 4.1e8 < sum(p.numel() for p in whole_size.parameters()) < 4.4e8
    torch.manual_seed(0)
    thin = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**SO400M | {"num_hidden_layers": 1})
    )
    thin.to(torch.bfloat16).save_pretrained(tmp_path / "siglip2-so400m-patch16-512")
    encoder = UnderstandingEncoder.from_pretrained(
        tmp_path / "siglip2-so400m-patch16-512", dtype=torch.bfloat16
    )
    assert (encoder.dim, encoder.patches) == (1152, 1024) and encoder.vision.dtype == torch.bfloat16
    features = encoder.encode(pictures(1, 64, 48))
    assert features.shape == (1, 1024, 1152) and features.dtype == torch.float32
    assert encoder.id.startswith("siglip2-so400m-patch16-512@")


def test_what_is_no_siglip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no SigLIP image tower"):
        UnderstandingEncoder.from_pretrained(tmp_path / "nowhere")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="holds a bert model"):
        UnderstandingEncoder.from_pretrained(tmp_path)


def test_images_of_another_layout_are_refused(whole: Path) -> None:
    with pytest.raises(EncoderError, match="float64"):
        UnderstandingEncoder.from_pretrained(whole).encode(np.zeros((1, 8, 8, 3)))
