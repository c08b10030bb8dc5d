"""Texts as the ids that a text tower was trained on, with what of them does not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from oneflow_core.encoders.identity import NAME_FILE, EncoderError
from oneflow_core.encoders.understanding import pad_ids
from oneflow_core.tokenizer import Tokenizer

PROBE = ["A photo of 2 cats, isn't it?", "  Ünï-cödé (日本) & <tags>...  ", "the quick brown fox " * 64]
"""What a tokenizer is told apart by, beside its vocabulary: case, marks, spaces, other scripts, and its cut."""


class TextInputs:
    """Ids cut and padded on every text to `positions`, so that no text's ids depend on those beside it."""

    def __init__(self, tokenizer: Any, positions: int, masked: bool) -> None:
        """Wraps our `Tokenizer` or a transformers one; `masked` towers are told which ids are padding."""
        self.tokenizer = tokenizer
        self.positions = positions
        self.masked = masked

    @classmethod
    def from_pretrained(cls, source: str, tower: Any, masked: bool) -> TextInputs:
        """The tokenizer beside a text tower's config, in a directory or of a hub name; no code of it is run.

        Raises:
            EncoderError: the tokenizer and the tower do not belong together.
            ImportError, OSError, ValueError: it is not there, or needs a package that is not.
        """
        import transformers

        positions = int(tower.max_position_embeddings)
        if Path(source, NAME_FILE).is_file():
            return cls(Tokenizer.from_pretrained(source), positions, masked)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        # Without its files a tokenizer of transformers is made all the same, of nothing but specials.
        if (known := len(tokenizer.get_vocab())) < tower.vocab_size // 2:
            raise EncoderError(
                f"the tokenizer of {source!r} knows {known} tokens and its text tower {tower.vocab_size}; "
                "put the tokenizer's own files beside the weights"
            )
        return cls(tokenizer, positions, masked)

    def __call__(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], int]:
        """The tower's inputs, int64 [len(texts), positions] each, and how many texts were cut to fit.

        The end-of-text id of a vocabulary that has one stays in a text that was cut, as models are trained.

        Raises:
            EncoderError: a text is no string, or no valid Unicode.
        """
        check_texts(texts)
        if isinstance(self.tokenizer, Tokenizer):
            ids = [self.tokenizer.encode(text) for text in texts]
            padded = pad_ids(ids, self.positions, self.tokenizer.bos_id)
            return {"input_ids": padded}, self._cut(ids)
        whole = self.tokenizer(list(texts), verbose=False)["input_ids"]
        options = {"padding": "max_length", "truncation": True, "max_length": self.positions}
        inputs = self.tokenizer(list(texts), return_tensors="pt", return_attention_mask=True, **options)
        names = ("input_ids", "attention_mask") if self.masked else ("input_ids",)
        return {name: inputs[name] for name in names}, self._cut(whole)

    @cached_property
    def digest(self) -> str:
        """sha256 in hex of the vocabulary and of what becomes of the probe texts."""
        if isinstance(self.tokenizer, Tokenizer):
            return self.tokenizer.digest
        ids = self(PROBE)[0]["input_ids"].tolist()
        content = json.dumps([sorted(self.tokenizer.get_vocab().items()), ids])
        return hashlib.sha256(content.encode()).hexdigest()

    def _cut(self, ids: Sequence[Sequence[int]]) -> int:
        return sum(len(row) > self.positions for row in ids)


def check_texts(texts: Sequence[object]) -> None:
    """Holds that every one is a string that UTF-8 can carry.

    Raises:
        EncoderError: one is not.
    """
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise EncoderError(f"text {place} is {text!r}, of {type(text).__name__}; give strings")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EncoderError(
                f"text {place} is no valid Unicode ({error}); remove the lone surrogate"
            ) from None
