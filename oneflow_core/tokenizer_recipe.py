"""How the embedded tokenizer was made; the same bytes on every machine.

The asset is remade by `python -m oneflow_core.tokenizer_recipe`, which a test compares with what is shipped.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from oneflow_core.shapes import ask, caption, sample_scene, sample_story
from oneflow_core.shapes.lexicon import ANY_SHAPE, COLOUR_WORDS, NUMBER_WORDS, SHAPE_WORDS, SIZE_WORDS, plural
from oneflow_core.tokenizer import BOS, EMBEDDED, IMAGE, Tokenizer

VOCAB_SIZE = 2048
COUNT_WEIGHTS = (0.45, 0.25, 0.18, 0.12)
"""Shares of scenes of one to four objects: fixed here, so that the ids outlive a change of the corpus."""
SHAPES_TEXTS = 2000
ENGLISH_REPEATS = 4
EMOJI_RANGES = ((0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x1F680, 0x1F6C5), (0x1F90C, 0x1F9FF))
"""Blocks that Unicode had filled before the oldest Python that we support; names never change afterwards."""


def fit_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids, `<bos>` = 0 and `<|image|>` = 1, from `texts` in any order."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[BOS, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def embedded_texts() -> Iterator[str]:
    """What the embedded tokenizer was fitted on: the shapes corpus, plain English, and the names of emoji."""
    rng = np.random.default_rng(0)
    for _ in range(SHAPES_TEXTS):
        scene = sample_scene(rng, weights=COUNT_WEIGHTS)
        question = ask(scene, rng)
        yield from (caption(scene, rng), question.text, question.answer)
    for _ in range(SHAPES_TEXTS // 4):
        yield from sample_story(rng, weights=COUNT_WEIGHTS).texts
    yield from _words() * 50
    yield from (EMBEDDED / "english.txt").read_text(encoding="utf-8").splitlines() * ENGLISH_REPEATS
    for first, last in EMOJI_RANGES:
        yield from (unicodedata.name(chr(code)).lower() for code in range(first, last + 1))


def _words() -> list[str]:
    """Every word of the shapes lexicon as it stands in a sentence and alone, so that each becomes one id."""
    nouns = [n for words in (*SHAPE_WORDS.values(), ANY_SHAPE) for n in words]
    others = [w for words in (*COLOUR_WORDS.values(), *SIZE_WORDS.values(), NUMBER_WORDS) for w in words]
    words = [*nouns, *map(plural, nouns), *others]
    return [f"a {word}" for word in words] + others + nouns + ["yes", "no"]


if __name__ == "__main__":
    fit_tokenizer(embedded_texts()).save_pretrained(EMBEDDED)
