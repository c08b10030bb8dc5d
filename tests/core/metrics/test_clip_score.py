"""CLIP score against torchmetrics, on small random models; pooling, order and rules by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from oneflow_core.encoders import DualEncoder, EncoderError
from oneflow_core.metrics.clip_score import HESSEL, PERCENT, ScoreRule, clip_score
from oneflow_core.shapes import render, sample_in_split
from oneflow_core.shapes.grammar import canonical_caption
from tests.core.tiny_dual import CAPTIONS, WORDS, pictures, tiny_clip, tiny_siglip
from tests.reference import shared, shared_json

FITTING = CAPTIONS[:-1]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-clip", seed=1)


@pytest.fixture(scope="module")
def clip(directory: Path) -> DualEncoder:
    return DualEncoder.from_pretrained(directory)


class Tensors(transformers.CLIPModel):
    """A CLIP as torchmetrics 1.9 wants it: with tensors for embeddings, which transformers 5 does not return."""

    def get_image_features(self, *args: Any) -> torch.Tensor:
        return super().get_image_features(*args).pooler_output

    def get_text_features(self, *args: Any) -> torch.Tensor:
        return super().get_text_features(*args).pooler_output


def reference(directory: Path, dtype: torch.dtype = torch.float32) -> Callable[[], tuple[Any, Any]]:
    model = Tensors.from_pretrained(directory, dtype=dtype).eval().requires_grad_(False)
    processor = transformers.CLIPProcessor.from_pretrained(directory)
    return lambda: (model, processor)


def their_scores(
    images: list[np.ndarray], texts: list[str], directory: Path, dtype: torch.dtype = torch.float32
) -> list[float]:
    """torchmetrics' score of every pair by itself."""
    from torchmetrics.functional.multimodal import clip_score as theirs

    parts = reference(directory, dtype)
    return [
        theirs([image], [text], parts).item()
        for image, text in zip(channels_first(images), texts, strict=True)
    ]


def channels_first(images: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(image).permute(2, 0, 1) for image in images]


def every_pair() -> tuple[list[np.ndarray], list[str]]:
    """Six images with each of the captions that fit."""
    return [i for i in pictures(6) for _ in FITTING], FITTING * 6


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
def test_torchmetrics_gives_the_same_for_every_pair(
    directory: Path, dtype: torch.dtype, precision: float
) -> None:
    """Of figures from 0 to 100: float32 differs by the rounding of embeddings, float64 says that nothing else does."""
    images, texts = every_pair()
    encoder = DualEncoder.from_pretrained(directory, dtype=dtype)
    found, wanted = clip_score(encoder, images, texts), their_scores(images, texts, directory, dtype)
    assert found.each == pytest.approx(wanted, rel=0, abs=precision)
    assert 0 < sum(value == 0 for value in wanted) < len(wanted), "both signs of the cosine are tried"
    assert (found.name, found.encoder, found.cut, found.matches) == ("clip_score", encoder.id, 0, ())


def test_torchmetrics_accumulates_the_same_mean_where_no_cosine_is_negative(
    clip: DualEncoder, directory: Path
) -> None:
    from torchmetrics.multimodal import CLIPScore

    images, texts = every_pair()
    positive = [i for i, cosine in enumerate(clip_score(clip, images, texts).cosines) if cosine > 0]
    images, texts = [images[i] for i in positive], [texts[i] for i in positive]
    metric = CLIPScore(reference(directory))
    for start in range(0, len(texts), 4):
        metric.update(channels_first(images[start : start + 4]), texts[start : start + 4])
    assert clip_score(clip, images, texts).mean == pytest.approx(metric.compute().item(), rel=0, abs=1e-4)


def test_pairs_are_clipped_one_by_one_where_torchmetrics_clips_their_mean(
    clip: DualEncoder, directory: Path
) -> None:
    from torchmetrics.functional.multimodal import clip_score as theirs

    images, texts = every_pair()
    found = clip_score(clip, images, texts)
    mean = theirs(channels_first(images), texts, reference(directory)).item()
    assert max(0.0, 100 * float(np.mean(found.cosines))) == pytest.approx(mean, rel=0, abs=1e-4)
    assert found.mean == pytest.approx(100 * np.clip(found.cosines, 0, None).mean(), abs=1e-9)
    assert found.mean > mean + 1


def test_the_paper_s_rule_is_2_5_times_the_cosine_with_its_prefix(clip: DualEncoder, directory: Path) -> None:
    images, texts = pictures(4), FITTING[:4]
    found = clip_score(clip, images, texts, rule=HESSEL)
    prefixed = their_scores(images, [f"A photo depicts {text}" for text in texts], directory)
    assert found.each == pytest.approx([value / 40 for value in prefixed], rel=0, abs=1e-5)
    assert found.mean == pytest.approx(math.fsum(prefixed) / 160, rel=0, abs=1e-5) and max(prefixed) > 0
    assert found.cosines != clip_score(clip, images, texts).cosines and found.cut == 0


def test_long_texts_are_cut_and_counted(clip: DualEncoder) -> None:
    found = clip_score(clip, pictures(6), CAPTIONS)
    assert found.cut == 1
    tail = [*CAPTIONS[:-1], CAPTIONS[-1] + " and of much more that nobody reads"]
    assert clip_score(clip, pictures(6), tail).cosines == found.cosines
    assert clip_score(clip, pictures(6), CAPTIONS, rule=ScoreRule(1.0, "a " * WORDS)).cut == 6


def test_siglip_is_named_and_gives_the_probability_of_a_match(tmp_path: Path) -> None:
    siglip = DualEncoder.from_pretrained(tiny_siglip(tmp_path / "s"))
    found = clip_score(siglip, pictures(6), CAPTIONS)
    assert (found.name, found.cut) == ("siglip_score", 1)
    model = transformers.SiglipModel.from_pretrained(tmp_path / "s")
    scale, bias = model.logit_scale.exp().item(), model.logit_bias.item()
    wanted = [1 / (1 + math.exp(-scale * cosine - bias)) for cosine in found.cosines]
    assert found.matches == pytest.approx(wanted, abs=1e-7)


def test_a_trained_siglip_knows_the_captions_of_scenes() -> None:
    rng = np.random.default_rng(5)
    scenes = [sample_in_split(rng, "heldout_random") for _ in range(24)]
    images, texts = [render(scene) for scene in scenes], [canonical_caption(scene) for scene in scenes]
    encoder = DualEncoder.from_pretrained("embedded")
    own, others = clip_score(encoder, images, texts), clip_score(encoder, images, texts[1:] + texts[:1])
    assert own.mean > others.mean + 10
    assert np.mean(np.greater(own.matches, 0.5)) > 0.9 and np.mean(np.greater(others.matches, 0.5)) < 0.2


def test_scores_keep_the_order_and_do_not_depend_on_the_batch(clip: DualEncoder) -> None:
    images, texts = every_pair()
    found = clip_score(clip, images, texts, batch=7)
    assert clip_score(clip, images, texts, batch=7) == found
    for batch in (1, 30, 500):
        assert clip_score(clip, images, texts, batch=batch).cosines == pytest.approx(found.cosines, abs=1e-6)
    order = np.random.default_rng(0).permutation(len(texts))
    moved = clip_score(clip, [images[i] for i in order], [texts[i] for i in order])
    assert moved.cosines == pytest.approx([found.cosines[i] for i in order], abs=1e-6)


def test_parts_add_up_and_scores_of_another_kind_do_not(clip: DualEncoder, tmp_path: Path) -> None:
    images = pictures(6)
    parts = [clip_score(clip, images[part], CAPTIONS[part]) for part in (slice(0, 2), slice(2, 6))]
    whole, total = clip_score(clip, images, CAPTIONS), parts[0] + parts[1]
    assert total.cosines == pytest.approx(whole.cosines, abs=1e-6)
    assert total.mean == pytest.approx(whole.mean, abs=1e-4) and total.cut == whole.cut == 1
    other = DualEncoder.from_pretrained(tiny_clip(tmp_path / "tiny-clip", seed=2))
    for stranger in (
        clip_score(other, images, CAPTIONS),
        clip_score(clip, images, CAPTIONS, rule=ScoreRule(1.0)),
    ):
        with pytest.raises(ValueError, match="do not compare"):
            _ = whole + stranger


def test_what_makes_no_pairs_is_refused(clip: DualEncoder) -> None:
    with pytest.raises(ValueError, match="2 images and 1 texts make no pairs"):
        clip_score(clip, pictures(2), ["a"])
    with pytest.raises(ValueError, match="no pairs to score"):
        clip_score(clip, [], [])
    with pytest.raises(ValueError, match="a batch of 0 pairs"):
        clip_score(clip, pictures(1), ["a"], batch=0)
    with pytest.raises(EncoderError, match="text 0 is 3, of int"):
        clip_score(clip, pictures(1), [3], rule=PERCENT)  # type: ignore[list-item]


def test_the_paper_s_example_where_its_model_is_at_hand() -> None:
    """The README of the paper's code prints 0.8584 for these, from float16 on a GPU."""
    from huggingface_hub import try_to_load_from_cache
    from PIL import Image

    if not isinstance(try_to_load_from_cache("openai/clip-vit-base-patch32", "model.safetensors"), str):
        pytest.skip("ViT-B/32 is not in the cache of the hub, which tests do not ask")
    captions = shared_json("captions_clipscore/good_captions.json")
    published = shared_json("captions_clipscore/published_scores.json")["good_captions.json"]
    encoder = DualEncoder.from_pretrained("openai/clip-vit-base-patch32")
    files = [shared(f"captions_clipscore/images/{name}.jpg") for name in captions]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    found = clip_score(encoder, images, list(captions.values()), rule=HESSEL)
    assert found.mean == pytest.approx(published["CLIPScore(ViT-B/32, w=2.5)"], abs=5e-3)
