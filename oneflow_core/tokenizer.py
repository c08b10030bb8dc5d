"""Text to ids and back, exactly: byte-level BPE on huggingface `tokenizers`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

BOS = "<bos>"
IMAGE = "<|image|>"
EMBEDDED = Path(__file__).parent / "assets" / "tokenizer"
FILE_NAME = "tokenizer.json"
_OTHER_BOS = ("<|begin_of_text|>", "<s>", "<|startoftext|>", "[CLS]", "<|endoftext|>", "<|im_start|>")
"""What other vocabularies call the beginning of a text."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be used, or a text that is no Unicode; the message says which and why."""


class Tokenizer:
    """`decode(encode(s)) == s` for every string, where the vocabulary is byte-level as the embedded one is.

    Text never becomes a special: "<|image|>" typed by a user is encoded as those characters. `encode` adds no
    special; whoever builds a sequence puts `bos_id` and `image_id` where they belong.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wraps a huggingface tokenizer; one without `<|image|>` gets it as its last id.

        Raises:
            TokenizerError: the vocabulary knows no beginning of a text.
        """
        from tokenizers import AddedToken

        names = [name for name in (BOS, *_OTHER_BOS) if backend.token_to_id(name) is not None]
        if not names:
            raise TokenizerError(
                f"the vocabulary has none of {', '.join((BOS, *_OTHER_BOS))}; add {BOS} to its special tokens"
            )
        if backend.token_to_id(IMAGE) is None:
            backend.add_special_tokens([AddedToken(IMAGE, normalized=False)])
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self._backend = backend
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.bos_id, self.image_id = vocabulary[names[0]], vocabulary[IMAGE]

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Tokenizer:
        """The "embedded" tokenizer, one from a directory that holds tokenizer.json, or one of the hub by its name.

        Raises:
            TokenizerError: nothing can be read there.
        """
        import tokenizers

        place = EMBEDDED if str(name_or_path) == "embedded" else Path(name_or_path)
        try:
            if place.is_dir():
                return cls(tokenizers.Tokenizer.from_file(str(place / FILE_NAME)))
            return cls(tokenizers.Tokenizer.from_pretrained(str(name_or_path)))
        except TokenizerError:
            raise
        except Exception as error:  # the backend raises bare Exception
            raise TokenizerError(
                f"no tokenizer at {name_or_path}: {error}; name a directory with {FILE_NAME}, "
                'a repository of the hub, or "embedded"'
            ) from error

    def __reduce__(self) -> tuple[Callable[[str], Tokenizer], tuple[str]]:
        return _from_json, (self._backend.to_str(),)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes tokenizer.json, from which `from_pretrained(directory)` gives an equal tokenizer."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / FILE_NAME).write_text(self._backend.to_str(pretty=True) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def digest(self) -> str:
        """sha256 in hex of everything that decides ids and texts."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, no specials among them.

        Raises:
            TokenizerError: `text` holds a lone surrogate, which no file or network carries as UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text is no valid Unicode ({error}); remove the lone surrogate"
            ) from None
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; specials give nothing, bytes that are no UTF-8 give U+FFFD.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        size = self.vocab_size
        for id_ in ids:
            if not 0 <= id_ < size:
                raise TokenizerError(f"id {id_} is outside the vocabulary of {size}")
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=True))


def _from_json(text: str) -> Tokenizer:
    import tokenizers

    return Tokenizer(tokenizers.Tokenizer.from_str(text))
