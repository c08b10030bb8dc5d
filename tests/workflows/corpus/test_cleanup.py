"""Texts in one form: against unicodedata's own tables, and whatever hypothesis thinks of."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.corpus.cleanup import CleanupConfig, TextError, cleaned

USUAL = CleanupConfig()
NOTHING = CleanupConfig(form="keep", controls="keep", strip=False)
LIMIT = 64 * 1024
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
ODD = st.text(
    st.sampled_from("a é\u0301\u0308\u0958\u200b\u200d\u202e\ufeff\r\n\t\x00\x85\u2028가ᄀ"), min_size=1
)


@settings(max_examples=300)
@given(TEXTS | ODD)
def test_once_cleaned_it_stays(text: str) -> None:
    try:
        once = cleaned(text, USUAL, LIMIT)
    except TextError as error:
        assert str(error) == "text empty"
        return
    assert cleaned(once, USUAL, LIMIT) == once == once.strip()
    assert unicodedata.is_normalized("NFC", once)
    assert {c for c in once if unicodedata.category(c) == "Cc"} <= {"\n", "\t"}


@settings(max_examples=200)
@given(TEXTS | ODD, st.integers(1, 40))
def test_no_text_outgrows_its_limit(text: str, limit: int) -> None:
    try:
        assert len(cleaned(text, USUAL, limit).encode()) <= limit
    except TextError as error:
        assert str(error) in {"text empty", "text too long"}


def test_composition_that_makes_longer_is_noticed() -> None:
    text = "\u0958" * 10  # three bytes each, six when composed
    assert len(cleaned(text, USUAL, 60).encode()) == 60
    with pytest.raises(TextError, match="too long"):
        cleaned(text, USUAL, 59)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("e\u0301", "\u00e9"),
        ("\ufeff BOM and NUL\x00 \n", "BOM and NUL"),
        ("one\r\ntwo\rthree\x85four\u2028five", "one\ntwo\nthree\nfour\nfive"),
        ("a\tb\nc", "a\tb\nc"),
        ("ZERO\u200bWIDTH \u202egnitirw\u202c", "ZEROWIDTH gnitirw"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d👧 \U0001f3f4\U000e0067\U000e007f", "👩\u200d👧 \U0001f3f4\U000e0067\U000e007f"),
        ("\uffff\U0010ffff.", "."),
    ],
)
def test_what_is_kept_and_what_is_not(text: str, meant: str) -> None:
    assert cleaned(text, USUAL, LIMIT) == meant


def test_the_switches() -> None:
    text = " e\u0301\x00\r\n "
    assert cleaned(text, NOTHING, LIMIT) == text
    assert cleaned(text, CleanupConfig(form="keep"), LIMIT) == "e\u0301"
    assert cleaned(text, CleanupConfig(strip=False), LIMIT) == " \u00e9\n "
    with pytest.raises(TextError, match="control characters"):
        cleaned(text, CleanupConfig(controls="refuse"), LIMIT)
    assert cleaned("a\r\nb", CleanupConfig(controls="refuse"), LIMIT) == "a\nb"


def test_what_is_no_text() -> None:
    for text in ("", " \n", "\u200b\x00"):
        with pytest.raises(TextError, match="text empty"):
            cleaned(text, USUAL, LIMIT)
    for config in (USUAL, NOTHING):
        with pytest.raises(TextError, match="not utf-8"):
            cleaned("a\ud800b", config, LIMIT)


def test_a_run_of_accents_takes_no_time_to_speak_of() -> None:
    begin = time.monotonic()
    cleaned("a" + "\u0301\u0327" * (LIMIT // 4 - 1), USUAL, LIMIT)
    assert time.monotonic() - begin < 5
