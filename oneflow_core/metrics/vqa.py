"""VQA accuracy by the rules of the official evaluation (Antol et al. 2015; visualqa.org, version 2)."""

from __future__ import annotations

import re
from collections.abc import Sequence

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
"""The official pattern, as it is: its look-behind is misspelt, so only a digit after the period protects it."""
PERIODS = 32
"""The official call passes re.UNICODE, which is 32, in the place of the number of replacements."""
CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
I'm I've isn't it'd it'll let's ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't
should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's
there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's
what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't
y'all you'd you'll you're you've
"""
TWICE = """
couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
"""


def _contractions() -> dict[str, str]:
    """The official table: words without their apostrophe, or with one of two missing."""
    table = {word.replace("'", ""): word for word in CONTRACTED.split() if word != "let's"}
    for word in TWICE.split():
        stem, middle, end = word.rsplit("'", 2)
        table |= {f"{stem}{middle}'{end}": word, f"{stem}'{middle}{end}": word}
    return table | {
        "somebody'd": "somebodyd",
        "ow's'at": "'ow's'at",
        "'ows'at": "'ow's'at",
        "'ow'sat": "'ow's'at",
    }


CONTRACTIONS = _contractions()


def normalised(answer: str) -> str:
    """An answer as it is compared: lower case, digits, no articles, punctuation and contractions as the rules say."""
    text = answer
    for mark in PUNCTUATION:
        apart = f"{mark} " in answer or f" {mark}" in answer or DIGIT_COMMA.search(answer)
        text = text.replace(mark, "" if apart else " ")
    text = PERIOD.sub("", text, count=PERIODS)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """min(1, agreeing people / 3), averaged over leaving out each of the people once; 0 to 1.

    People are told apart by their place, so that two who said the same count twice. Answers are normalised only where
    the people do not all agree, as the official script does.

    Raises:
        ValueError: no truths.
    """
    if not truths:
        raise ValueError("a question without answers of people; leave it out")
    said, true = _plain(answer), [_plain(t) for t in truths]
    if len(set(true)) > 1:
        said, true = normalised(said), [normalised(t) for t in true]
    agreeing = sum(t == said for t in true)
    scores = [min(1.0, (agreeing - (t == said)) / 3) for t in true]
    return sum(scores) / len(scores)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
