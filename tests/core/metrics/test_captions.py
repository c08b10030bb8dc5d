"""Caption metrics against pycocoevalcap's figures, its tokenizer's output, and small cases by hand."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from oneflow_core.metrics.captions import bleu, caption_tokens, cider, rouge_l, score_captions
from tests.reference import shared, shared_json

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
        # What follows is what pycocoevalcap 1.2 makes of it with Java.
        ('he said "hi there" to me', "he said hi there to me"),
        ("the dog\u2019s bone \u2014 don\u2019t go", "the dog 's bone do n't go"),
        ("\u201ccurly\u201d quotes and \u2018single\u2019 ones", "curly quotes and single ones"),
        ("half (or so) of [it] {x}", "half -lrb- or so -rrb- of -lsb- it -rsb- -lcb- x -rcb-"),
        ("a 2x2 grid in 8K of 35mm", "a 2x2 grid in 8k of 35mm"),
        ("a 3.5mm jack at 5pm", "a 3.5 mm jack at 5 pm"),
        ("3-d 7-eleven 5-year-old 10,000-seat 12-31-2010", "3-d 7-eleven 5-year-old 10,000-seat 12-31-2010"),
        ("-5 degrees, +5, .23 and 1/2", "-5 degrees +5 .23 and 1/2"),
        ("the 80's, 1980s, 3rd, 9:30", "the 80 's 1980s 3rd 9:30"),
        ("I cannot, gonna, gotta", "i can not gon na got ta"),
        ("Mr. Smith and Dr. Who, St. John's, etc.", "mr. smith and dr. who st. john 's etc."),
        ("No. 5. He says no. The U.S. flag", "no. 5 he says no the u.s. flag"),
        ("the cat sat. vitamin a.", "the cat sat vitamin a."),
        ("o'clock, O'Brien, ma'am, y'all, 'em", "o'clock o'brien ma'am y' all 'em"),
        ("rock'n'roll, who'd've", "rock 'n' roll who 'd 've"),
        ("hello!! what?! why?", "hello !! what ?! why"),
        ("R&B at A&W &amp; co.", "r & b at a & w & co."),
        ("<unk> @home #tag a@b.com www.x.com", "<unk> @home #tag a@b.com www.x.com"),
        ("\u00a33 and \u20ac4, \u00bd cup \U0001f600", "# 3 and $ 4 1/2 cup"),
    ],
)
def test_tokens_by_hand(text: str, tokens: str) -> None:
    assert caption_tokens(text) == tokens.split()


@pytest.mark.skipif(shutil.which("java") is None, reason="the Penn Treebank tokenizer needs Java")
def test_prompts_are_cut_as_java_cuts_them() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = shared("prompts/partiprompts.tsv").read_text("utf-8").splitlines()[1:]
    texts = [line.split("\t")[0] for line in lines]
    texts += [
        json.loads(line)["prompt"]
        for line in shared("prompts/dpg_bench_prompts.jsonl").read_text("utf-8").splitlines()
    ]
    theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    wrong = [
        text
        for i, text in enumerate(texts)
        if text.strip() and " ".join(caption_tokens(text)) != theirs[i][0]
    ]
    assert len(texts) > 1000 and not wrong


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
