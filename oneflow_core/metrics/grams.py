"""Runs of tokens, as BLEU and CIDEr count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]
Grams = Counter[tuple[str, ...]]
ORDERS = 4
"""Runs of 1 to 4 tokens."""


def grams(tokens: Tokens, order: int) -> Grams:
    """How often each run of `order` tokens occurs."""
    return Counter(zip(*(tokens[i:] for i in range(order)), strict=False))
