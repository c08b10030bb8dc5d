"""BLEU, ROUGE-L and CIDEr against pycocoevalcap's own scorers on random captions; they need no Java."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from oneflow_core.metrics.captions import bleu, cider, rouge_l, score_captions

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "circle",
    "star",
    "dog",
    "cat",
    "on",
    "under",
    "near",
    "two",
    "three",
    "big",
]
CAPTION = st.lists(st.sampled_from(WORDS), min_size=1, max_size=18)
PAIR = st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=5))
Pairs = list[tuple[list[str], list[list[str]]]]


def theirs(pairs: Pairs) -> tuple[list[float], float, list[float]]:
    """BLEU-1 to BLEU-4 of all, mean ROUGE-L, and CIDEr by image."""
    made = {str(i): [" ".join(tokens)] for i, (tokens, _) in enumerate(pairs)}
    true = {str(i): [" ".join(tokens) for tokens in truths] for i, (_, truths) in enumerate(pairs)}
    blues = Bleu(4).compute_score(true, made, verbose=0)[0]
    return blues, Rouge().compute_score(true, made)[0], list(Cider().compute_score(true, made)[1])


def ours(pairs: Pairs) -> tuple[list[float], float, list[float]]:
    made = {str(i): tokens for i, (tokens, _) in enumerate(pairs)}
    true = {str(i): truths for i, (_, truths) in enumerate(pairs)}
    rouge = [rouge_l(made[name], true[name]) for name in made]
    return (
        list(bleu(list(made.values()), list(true.values()))),
        sum(rouge) / len(rouge),
        list(cider(made, true).values()),
    )


def assert_same(pairs: Pairs) -> None:
    for found, wanted in zip(ours(pairs), theirs(pairs), strict=True):
        assert found == pytest.approx(wanted, rel=1e-11, abs=1e-13)


@settings(deadline=None, max_examples=150)
@given(st.lists(PAIR, min_size=1, max_size=8))
def test_captions_of_any_kind_score_the_same(pairs: Pairs) -> None:
    assert_same(pairs)


@settings(deadline=None, max_examples=50)
@given(st.lists(PAIR, min_size=2, max_size=5), st.integers(0, 4))
def test_an_empty_caption_scores_the_same(pairs: Pairs, place: int) -> None:
    place %= len(pairs)
    assert_same([([], truths) if i == place else (made, truths) for i, (made, truths) in enumerate(pairs)])


def test_captions_near_their_references_score_the_same() -> None:
    """A set as an evaluation has it, whose captions are references with words changed and dropped."""
    rng = np.random.default_rng(0)

    def varied(tokens: list[str]) -> list[str]:
        kept = [str(rng.choice(WORDS)) if rng.random() < 0.2 else t for t in tokens if rng.random() < 0.9]
        return kept or ["a"]

    pairs: Pairs = []
    for _ in range(300):
        base = [str(w) for w in rng.choice(WORDS, rng.integers(4, 16))]
        pairs.append((varied(base), [varied(base) for _ in range(5)]))
    assert_same(pairs)
    blues, rouge, ciders = theirs(pairs)
    captions = {str(i): " ".join(made) for i, (made, _) in enumerate(pairs)}
    references = {str(i): [" ".join(t) for t in truths] for i, (_, truths) in enumerate(pairs)}
    scores = score_captions(captions, references)
    assert scores.bleu == pytest.approx(blues, rel=1e-11) and blues[3] > 0.1
    assert (scores.rouge_l, scores.cider) == pytest.approx((rouge, np.mean(ciders)), rel=1e-11)
