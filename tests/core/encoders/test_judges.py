"""Models that judge pictures: features, answers and boxes, held against transformers used directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from oneflow_core.encoders import DualEncoder, EncoderError
from oneflow_core.encoders.answerer import Answerer, bare
from oneflow_core.encoders.detector import Colours, Detector
from oneflow_core.encoders.features import picture_features
from oneflow_core.metrics.geneval import COLOUR_TEMPLATES, COLOURS, Detection
from tests.core.tiny_dual import tiny_clip, tiny_siglip
from tests.core.tiny_judges import tiny_blip, tiny_dino, tiny_llava, tiny_vilt, tiny_yolos


def picture(seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def test_dinov2_gives_the_normalised_class_token(tmp_path: Path) -> None:
    path = tiny_dino(tmp_path / "dino")
    found = picture_features("dinov2", path)
    model = transformers.Dinov2Model.from_pretrained(path).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    shown = [picture(0), picture(1, (80, 33))]
    with torch.inference_mode():
        inputs = processor([Image.fromarray(one) for one in shown], return_tensors="pt")
        wanted = model(**inputs).last_hidden_state[:, 0]
    np.testing.assert_allclose(found(shown), wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert found.figure == "fd_dinov2"
    assert tiny_dino(tmp_path / "dino", seed=1) and picture_features("dinov2", path).id != found.id


def test_siglip_gives_the_pooled_embedding(tmp_path: Path) -> None:
    path = tiny_siglip(tmp_path / "siglip")
    found, dual = picture_features("siglip", path), DualEncoder.from_pretrained(path)
    shown = [picture(0), picture(1)]
    unit = torch.from_numpy(found(shown))
    unit /= unit.norm(dim=-1, keepdim=True)
    assert (unit - dual.embed_images(shown)).abs().max() < 1e-3
    assert found.figure == "fd_siglip" and found.id.endswith("/pooled")


def test_features_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="name a DINOv2"):
        picture_features("dinov2", tiny_siglip(tmp_path / "siglip"))
    with pytest.raises(EncoderError, match="no DINOv2 could be loaded"):
        picture_features("dinov2", tmp_path / "none")
    with pytest.raises(EncoderError, match="need a path"):
        picture_features("siglip")


def test_a_classifier_gives_its_likeliest_answer(tmp_path: Path) -> None:
    path = tiny_vilt(tmp_path / "vilt")
    judge, shown = Answerer.from_pretrained(path), picture()
    model = transformers.ViltForQuestionAnswering.from_pretrained(path).eval()
    processor = transformers.AutoProcessor.from_pretrained(path, backend="pil")
    questions = ["is there a dog ?", "is there a", "dog ?"]
    for question, answer in zip(questions, judge.answer(shown, questions), strict=True):
        with torch.inference_mode():
            logits = model(
                **processor(images=Image.fromarray(shown), text=question, return_tensors="pt")
            ).logits
        assert answer == ("no", "yes")[int(logits.argmax())]
    assert judge.id.startswith("vilt@") and Answerer.from_pretrained(path).id == judge.id


def test_generators_and_chat_models_answer_the_same_every_time(tmp_path: Path) -> None:
    for path, kind in ((tiny_blip(tmp_path / "blip"), "generator"), (tiny_llava(tmp_path / "llava"), "chat")):
        judge = Answerer.from_pretrained(path)
        first = judge.answer(picture(), ["is there a dog ?", "is there"])
        assert judge.kind == kind and first == judge.answer(picture(), ["is there a dog ?", "is there"])
        assert len(first) == 2 and all(isinstance(answer, str) for answer in first)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("Yes.", "yes"), (" yes\nbecause", "yes"), ('"No!"', "no"), ("", ""), ("\n\nTwo dogs", "two dogs")],
)
def test_the_words_of_a_chat_answer(said: str, meant: str) -> None:
    assert bare(said) == meant


def test_boxes_are_those_of_the_model_under_genevals_names(tmp_path: Path) -> None:
    path = tiny_yolos(tmp_path / "yolos")
    detector, shown = Detector.from_pretrained(path), picture(2, (60, 90))
    model = transformers.YolosForObjectDetection.from_pretrained(path).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    with torch.inference_mode():
        outputs = model(**processor(Image.fromarray(shown), return_tensors="pt"))
    scores, labels = outputs.logits.softmax(-1)[0, :, :-1].max(-1)
    found = detector.detect(shown, 0.0)
    assert [d.score for d in found] == pytest.approx(scores.tolist(), abs=1e-5)
    names = {0: "computer mouse", 1: "cat", 2: "dog"}
    assert [d.label for d in found] == [names[n] for n in labels.tolist()]
    x, y, width, height = outputs.pred_boxes[0, 0].tolist()
    wanted = ((x - width / 2) * 90, (y - height / 2) * 60, (x + width / 2) * 90, (y + height / 2) * 60)
    assert found[0].box == pytest.approx(wanted, abs=1e-3)
    assert detector.detect(shown, 0.999) == []


def test_colours_are_named_by_the_nearest_mean_text(tmp_path: Path) -> None:
    encoder = DualEncoder.from_pretrained(tiny_clip(tmp_path / "clip"))
    shown = picture(3, (40, 40))
    found = [Detection("dog", 1.0, (2, 3, 20, 30)), Detection("dog", 1.0, (-5, 0, 60, 0))]
    texts = [[t.format(c=c, name="dog") for t in COLOUR_TEMPLATES] for c in COLOURS]
    means = torch.stack([encoder.embed_texts(group)[0].mean(0) for group in texts])
    means /= means.norm(dim=-1, keepdim=True)
    cuts = [shown[3:30, 2:20], np.pad(shown[:1], ((0, 0), (5, 20), (0, 0)))]
    wanted = [COLOURS[int((encoder.embed_images([cut]) @ means.T).argmax())] for cut in cuts]
    assert Colours(encoder)(shown, "dog", found) == wanted


def test_judges_that_are_no_judges_are_refused(tmp_path: Path) -> None:
    for load, said in ((Answerer, "answers questions"), (Detector, "object detector")):
        with pytest.raises(EncoderError, match=said):
            load.from_pretrained(tiny_dino(tmp_path / "dino"))
        with pytest.raises(EncoderError, match=said):
            load.from_pretrained(tmp_path / "none")
