"""Which documents that were kept are left out of a corpus: what that depends on the others."""

from typing import Any, Literal

from pydantic import Field, field_validator

from workflows.config import Config


class DuplicatesConfig(Config):
    """What is done about documents that are there twice. Of equals the first stays: by the order of the sources in the
    config, then by file, then by row.
    """

    exact: Literal["off", "document", "image"] = "document"
    """document: the same segments. image: the same image files, whatever is said of them; instructions (questions and
    answers) have to say the same too."""
    near: Literal["off", "phash"] = "off"
    """phash: pictures that look alike, by a perceptual hash of 64 bits; compared are documents of one image,
    instructions only with those that say the same. Turned on later it costs reading and hashing the images, no more."""
    distance: int = Field(default=4, ge=0, le=16)
    """Most bits in which near duplicates differ; 0 to 4 finds copies in other sizes and qualities, 8 and more also what
    only resembles."""

    @field_validator("exact", "near", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value
