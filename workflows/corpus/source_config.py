"""A source: where its files are, of which format, and what is taken from them."""

from typing import Literal, get_args

from pydantic import Field, field_validator

from workflows.config import Config
from workflows.corpus.filters import FiltersConfig

Name = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
Column = Literal[
    "id",
    "text",
    "image",
    "question",
    "answer",
    "segments",
    "conversations",
    "images",
    "texts",
    "metadata",
    "licence",
]
"""What a column can be to us, whatever its name is in the source."""


class FetchConfig(Config):
    """How images are fetched that rows name by URL."""

    schemes: list[str] = ["http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss"]
    """Schemes that rows may use; local files are never read for a row."""
    timeout_seconds: float = Field(default=20.0, gt=0)
    """Longest time for one image, each try."""
    retries: int = Field(default=2, ge=0, le=10)
    """Further tries after a failure that may pass; a page that is not there is not asked for again."""
    threads: int = Field(default=16, ge=1, le=256)
    """Images fetched at once by a task."""

    @field_validator("schemes")
    @classmethod
    def _remote(cls, schemes: list[str]) -> list[str]:
        local = sorted({"file", "local", "memory", ""} & {scheme.lower() for scheme in schemes})
        if local:
            raise ValueError(f"{local[0]!r} would let rows read this machine's files; name them in `images`")
        return schemes


class SourceConfig(Config):
    """One source: files of one format under one licence."""

    name: str = Field(pattern=Name)
    """Stands in document ids and paths."""
    format: Literal[
        "webdataset",
        "folder",
        "jsonl",
        "parquet",
        "huggingface",
        "mmc4",
        "obelics",
        "llava",
        "vqa",
        "coco",
    ]
    """What the files are; docs/data-engineer.md says what is looked for in each."""
    urls: list[str] = Field(min_length=1)
    """Files, or directories; `*`, `?`, `{a,b}` and `{00..09}` are understood, and `${root}`."""
    licence: str = Field(min_length=1)
    """SPDX id or a name, for documents that do not carry their own; `{json.license}` or `{column}` is put in."""
    caption: str = "{txt}"
    """How the caption is made: of a sample's members (`{txt}`, `{json.caption}`), of a row's columns (`{title}`)."""
    columns: dict[Column, str] = {}
    """Our column name -> theirs, dots for what is nested; `image` may be a template such as `{image_id:012}.jpg`."""
    limit: int | None = Field(default=None, ge=1)
    """Most documents taken of each file, in the order of its rows; None: all."""
    meta: dict[str, str] = {}
    """Provenance carried into `Document.meta`: our name -> a column, or a member's field such as `json.url`."""
    images: list[str] = []
    """Where images that rows name lie: directories or tars, any fsspec URL or pattern; [] for beside the file."""
    annotations: list[str] = []
    """vqa: the files with the answers, in a layout that keeps them apart from the questions."""
    captions: Literal["each", "first"] = "each"
    """coco: a document for each caption of an image, or for its first alone."""
    placement: Literal["before", "after"] = "before"
    """mmc4: on which side of the sentence that it matches an image is put."""
    bad_images: Literal["refuse", "drop"] | None = None
    """What becomes of a document with an image that is missing, refused or filtered out: it is refused, or stays
    without that image as long as it has another. None: drop for mmc4 and obelics, refuse for all else."""
    fetch: FetchConfig = FetchConfig()
    filters: FiltersConfig = FiltersConfig()
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the documents taken, chosen by seed and document id."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the corpus that this source shall have, against the weights of the others; as many documents are left
    out, by seed and id, as that takes. None: all that `share` takes; give every source a weight, or none."""

    @field_validator("columns", mode="before")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        known = get_args(Column)
        unknown = sorted(set(columns) - set(known))
        if unknown:
            raise ValueError(f"unknown column {unknown[0]!r} (known: {', '.join(sorted(known))})")
        return columns

    @property
    def drops_images(self) -> bool:
        """Whether documents stay without the images that cannot be taken."""
        return (self.bad_images or ("drop" if self.format in ("mmc4", "obelics") else "refuse")) == "drop"

    def column(self, ours: Column) -> str:
        """What the source calls our column."""
        return self.columns.get(ours, ours)
