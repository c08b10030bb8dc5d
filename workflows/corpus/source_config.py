"""A source: where its files are, of which format, and what is taken from them."""

from typing import Literal

from pydantic import Field, field_validator

from workflows.config import Config
from workflows.corpus.filters import FiltersConfig

Name = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class SourceConfig(Config):
    """One source: files of one format under one licence."""

    name: str = Field(pattern=Name)
    """Stands in document ids and paths."""
    format: Literal["webdataset", "jsonl", "folder"]
    """webdataset: tars of images with .txt and .json beside. jsonl: rows with questions or segments, images in a
    tar or folder of the same stem. folder: directories of images with .txt and .json beside."""
    urls: list[str] = Field(min_length=1)
    """Files, or directories for `folder`; `*`, `?`, `{a,b}` and `{00..09}` are understood, and `${root}`."""
    licence: str = Field(min_length=1)
    """SPDX id or a name, for documents that do not carry their own."""
    caption: str = "{txt}"
    """webdataset, folder: how the caption is made of a sample's members: `{txt}`, `{json.caption}`, ..."""
    columns: dict[str, str] = {}
    """jsonl: our column name -> theirs (id, question, answer, image, segments, text, licence)."""
    limit: int | None = Field(default=None, ge=1)
    """Most documents taken of each file, in the order of its rows; None: all."""
    meta: dict[str, str] = {}
    """Provenance carried into `Document.meta`: our name -> a column, or a member's field such as `json.url`."""
    images: list[str] = []
    """Where images that rows name lie: directories or tars, any fsspec URL or pattern; [] for beside the file."""
    annotations: list[str] = []
    """vqa: the files with the answers, in a layout that keeps them apart from the questions."""
    filters: FiltersConfig = FiltersConfig()
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the documents taken, chosen by seed and document id."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the corpus that this source shall have, against the weights of the others; as many documents are left
    out, by seed and id, as that takes. None: all that `share` takes; give every source a weight, or none."""

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        known = {"id", "question", "answer", "image", "segments", "text", "licence"}
        unknown = sorted(set(columns) - known)
        if unknown:
            raise ValueError(f"unknown column {unknown[0]!r} (known: {', '.join(sorted(known))})")
        return columns
