"""The tokenizer: exact round trips, no specials out of text, the words of the corpus in one id each."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.shapes.lexicon import COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS
from oneflow_core.tokenizer import EMBEDDED, FILE_NAME, Tokenizer, TokenizerError
from oneflow_core.tokenizer_recipe import embedded_texts, fit_tokenizer

TOKENIZER = Tokenizer.from_pretrained("embedded")


@settings(max_examples=500, deadline=None)
@given(st.text())
def test_every_string_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(1 < i < TOKENIZER.vocab_size for i in ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\x00\x01\x7f",
        "\r\n\t  \n",
        "😀 👩‍👩‍👧 🇩🇪",
        "<bos>",
        "a<|image|>b",
        "<|image|><bos>",
        "漢字 ﬁ Å Å",
        "a" * 10_000,
    ],
)
def test_odd_strings_come_back_without_specials(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not {TOKENIZER.bos_id, TOKENIZER.image_id} & set(ids)


def test_ids_and_size() -> None:
    assert (TOKENIZER.bos_id, TOKENIZER.image_id) == (0, 1)
    assert 1500 <= TOKENIZER.vocab_size <= 2048
    assert TOKENIZER.decode([0, *TOKENIZER.encode("a ring"), 1]) == "a ring"


def test_every_byte_has_an_id() -> None:
    assert len({i for byte in range(256) for i in TOKENIZER.encode(chr(byte))}) >= 128
    high = [TOKENIZER.encode(chr(code)) for code in (0x80, 0x7FF, 0xFFFF, 0x10FFFF)]
    assert [TOKENIZER.decode(ids) for ids in high] == [chr(c) for c in (0x80, 0x7FF, 0xFFFF, 0x10FFFF)]


@pytest.mark.parametrize("words", [SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS])
def test_words_of_the_corpus_are_one_id(words: dict[str, tuple[str, ...]]) -> None:
    for word in (w for synonyms in words.values() for w in synonyms if " " not in w):
        assert len(TOKENIZER.encode(f" {word}")) == 1, word
    for word in words:
        assert len(TOKENIZER.encode(word)) == 1, word


def test_ordinary_text_is_reasonable() -> None:
    text = "A woman is walking through the old town with her dog and a bag full of fresh bread."
    assert len(TOKENIZER.encode(text)) < len(text) / 2.5


def test_the_shipped_file_is_what_the_recipe_makes(tmp_path: Path) -> None:
    fit_tokenizer(embedded_texts()).save_pretrained(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == (EMBEDDED / FILE_NAME).read_bytes()


def test_saving_and_pickling_keep_it(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    for other in (Tokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(TOKENIZER))):
        assert other.digest == TOKENIZER.digest
        assert other.encode("a <|image|> ring") == TOKENIZER.encode("a <|image|> ring")


def test_a_foreign_vocabulary_gets_an_image_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    vocabulary = {"<s>": 0, **{chr(c): c for c in range(1, 128)}}
    Backend(models.BPE(vocabulary, [])).save(str(tmp_path / FILE_NAME))
    foreign = Tokenizer.from_pretrained(tmp_path)
    assert (foreign.bos_id, foreign.image_id, foreign.vocab_size) == (0, 128, 129)
    assert foreign.encode("ab") == [97, 98]


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    with pytest.raises(TokenizerError, match=str(tmp_path)):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(TokenizerError, match=str(tmp_path)):
        Tokenizer.from_pretrained(tmp_path)
    Backend(models.BPE({"a": 0}, [])).save(str(tmp_path / FILE_NAME))
    with pytest.raises(TokenizerError, match="<bos>"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="surrogate"):
        TOKENIZER.encode("\ud800")
    with pytest.raises(TokenizerError, match="outside"):
        TOKENIZER.decode([TOKENIZER.vocab_size])
    with pytest.raises(TokenizerError, match="outside"):
        TOKENIZER.decode([-1])
