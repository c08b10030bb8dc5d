"""Caption metrics against pycocoevalcap's figures, its tokenizer's output, and small cases by hand."""

from __future__ import annotations

import math

import pytest

from oneflow_core.metrics.captions import bleu, caption_tokens, cider, rouge_l, score_captions
from tests.reference import shared_json

SETS = ["human_leave_one_out", "shuffled_images", "copy_of_ref0", "one_constant_caption", "first_three_words"]


@pytest.mark.parametrize("name", SETS)
def test_pycocoevalcap_gives_the_same(name: str) -> None:
    golden = shared_json("captions_coco/golden_pycocoevalcap.json")[name]
    captions = shared_json("captions_coco/hypotheses.json")[name]
    found = score_captions(captions, shared_json("captions_coco/refs.json"))
    assert found.bleu == pytest.approx(golden["BLEU"], rel=1e-9)
    assert found.rouge_l == pytest.approx(golden["ROUGE_L"], rel=1e-9)
    assert found.cider == pytest.approx(golden["CIDEr"], rel=1e-9)
    assert found.cider_each == pytest.approx(golden["CIDEr_per_image"], rel=1e-9)


def test_tokens_are_those_of_the_java_tokenizer() -> None:
    golden = shared_json("captions_coco/golden_pycocoevalcap.json")["human_leave_one_out"]
    references = shared_json("captions_coco/refs.json")
    captions = shared_json("captions_coco/hypotheses.json")["human_leave_one_out"]
    pairs = [(text, tokens) for name, text in captions.items() for tokens in golden["tokenized_hyp"][name]]
    for name, texts in references.items():
        pairs += zip(texts, golden["tokenized_refs"][name], strict=True)
    assert len(pairs) > 190
    for text, tokens in pairs:
        assert " ".join(caption_tokens(text)) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog, a cat; and 3.5 birds!", "a dog a cat and 3.5 birds"),
        ("Don't look: it's the boys' room", "do n't look it 's the boys room"),
        ("a black-and-white photo...", "a black-and-white photo"),
        ("", ""),
    ],
)
def test_tokens_by_hand(text: str, tokens: str) -> None:
    assert caption_tokens(text) == tokens.split()


def test_bleu_clips_counts_and_is_short_with_short_captions() -> None:
    """Papineni's "the the the": 2 of 7 right, as one reference holds "the" twice."""
    reference = ["the", "cat", "is", "on", "the", "mat"]
    assert bleu([["the"] * 7], [[reference]])[0] == pytest.approx(2 / 7, rel=1e-6)
    assert bleu([reference[:3]], [[reference]])[0] == pytest.approx(math.exp(1 - 6 / 3), rel=1e-6)
    assert bleu([reference], [[reference]]) == pytest.approx((1, 1, 1, 1), rel=1e-6)


def test_rouge_is_the_f_of_the_longest_common_subsequence() -> None:
    made, truth = ["a", "b", "x", "d"], ["a", "b", "c", "d", "e"]
    precision, recall = 3 / 4, 3 / 5
    assert rouge_l(made, [truth]) == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    assert rouge_l(["z"], [truth]) == 0


def test_cider_of_a_copy_is_ten_and_of_what_all_say_nothing() -> None:
    references = {
        "1": [["a", "red", "big", "round", "fruit"]],
        "2": [["one", "blue", "small", "square", "box"]],
    }
    made = {"1": references["1"][0], "2": references["1"][0]}
    assert cider(made, references) == pytest.approx({"1": 10.0, "2": 0.0})
    common = {name: [["same", "words"]] for name in "12"}
    assert cider({"1": ["same", "words"], "2": ["same"]}, common) == {"1": 0.0, "2": 0.0}


def test_an_image_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="image b has no reference"):
        score_captions({"a": "x", "b": "y"}, {"a": ["x"]})
    with pytest.raises(ValueError, match="no captions"):
        score_captions({}, {})
