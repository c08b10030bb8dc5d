"""Clean-up: one form for every text, and nothing in it that nobody can see.

What is taken out is in `REMOVED`. What cannot be seen but spells or joins stays: U+200C and U+200D (Persian, Indic,
emoji), the marks U+200E, U+200F and U+061C, variation selectors, and the tags of flags.
"""

import re
import unicodedata
from typing import Literal

from pydantic import Field

from workflows.config import Config

BREAKS = re.compile("\r\n|[\r\x85\u2028\u2029]")
"""What stands for the end of a line or paragraph, and becomes a newline."""
REMOVED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # C0 but tab and newline; delete; C1
    "\u00ad\u200b\u2060-\u2064\ufeff"  # soft hyphen, zero-width space and joiners, byte order mark
    "\u202a-\u202e\u2066-\u206f"  # embedding, overriding and isolating of direction, and what came before it
    "\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff"  # interlinear notes; what is no character
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000))
    + "]"
)


class TextError(ValueError):
    """A text that is refused; its text is the reason."""


class CleanupConfig(Config):
    """What is done to every text before anything looks at it; `{form: keep, controls: keep, strip: false}`: nothing."""

    form: Literal["NFC", "keep"] = "NFC"
    """NFC: what looks the same is spelt the same (Unicode's canonical composition)."""
    controls: Literal["remove", "refuse", "keep"] = "remove"
    """Control characters (all of C0 and C1 but newline and tab), byte order marks, invisible characters and overrides
    of direction: taken out, or the row is refused. Ends of lines become newlines in both cases."""
    strip: bool = Field(default=True)
    """Take white space off both ends."""


def cleaned(text: str, config: CleanupConfig, limit: int) -> str:
    """`text` in its one form, of at most `limit` bytes of UTF-8; cleaned again it stays the same.

    Raises:
        TextError: "text empty", "text too long", "text not utf-8" (half of a surrogate pair), or "text control
            characters".
    """
    if config.controls != "keep":
        text = BREAKS.sub("\n", text)
        if config.controls == "refuse" and REMOVED.search(text):
            raise TextError("text control characters")
        text = REMOVED.sub("", text)
    if config.strip:
        text = text.strip()
    # Before composing, which takes quadratic time for runs of accents, and after, as a few characters become longer.
    _check_size(text, limit)
    if config.form == "NFC":
        text = unicodedata.normalize("NFC", text)
        _check_size(text, limit)
    if not text.strip():
        raise TextError("text empty")
    return text


def _check_size(text: str, limit: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise TextError("text not utf-8") from None
    if size > limit:
        raise TextError("text too long")
