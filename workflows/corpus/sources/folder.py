"""Directories of images with captions beside them, as img2dataset's `files` output and most people have them."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.drafting import drafts
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.images import Images
from workflows.corpus.sources.json_rows import json_rows
from workflows.corpus.sources.members import MEMBER_BYTES, draft_of, failures, is_image
from workflows.corpus.sources.places import UnitFolder, read_file
from workflows.corpus.sources.protocol import Draft, Reader, Refused
from workflows.corpus.sources.stored import StoredFile
from workflows.corpus.sources.tabular import Tabular


class FolderReader(Reader):
    """A unit is one directory, without those below it; files with the same name up to the first dot are a sample."""

    rows = False

    def beside(self, name: str) -> tuple[str, ...]:
        """The table that img2dataset writes of what failed."""
        return (f"{name}.parquet",)

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """What a metadata file names; without one pairs by name, then what the downloader's table says had failed."""
        prefix, table = f"{files.main}/", f"{files.main}.parquet"
        for listed in (f"{prefix}metadata.jsonl", f"{prefix}metadata.csv"):
            if listed in files.by_name:
                yield from _listed(files, listed, prefix, source)
                return
        samples: dict[str, dict[str, StoredFile]] = {}
        for name, file in sorted(files.by_name.items()):
            stem, _, suffix = name.removeprefix(prefix).partition(".")
            if name != table and stem and suffix:
                samples.setdefault(stem, {})[suffix.lower()] = file
        for key, members in sorted(samples.items()):
            yield self._sample(files, key, members, source)
        if table in files.by_name:
            with files.seekable(table) as stream:
                yield from failures(table, stream)

    def _sample(
        self, files: Files, key: str, members: dict[str, StoredFile], source: SourceConfig
    ) -> Draft | Refused:
        found: dict[str, bytes] = {}
        for suffix, file in members.items():
            if not is_image(suffix) and file.size > MEMBER_BYTES:
                continue
            picture = read_file(files, file, f"{files.main}/")
            if picture.data is None:
                return Refused(key, picture.reason, file.name.encode())
            found[suffix] = picture.data
        return draft_of(key, found, source)


def _listed(files: Files, name: str, prefix: str, source: SourceConfig) -> Iterator[Draft | Refused]:
    """Rows of a metadata file, as `datasets` has it: `file_name` and further columns."""
    images = Images([UnitFolder(files, prefix)])
    rows = json_rows(files, name) if name.endswith(".jsonl") else _csv(files, name)
    yield from drafts(rows, Tabular(source, images).plan, images)


def _csv(files: Files, name: str) -> Iterator[tuple[str, Any]]:
    with files.plain(name) as stream:
        for number, row in enumerate(csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""))):
            yield f"row-{number}", {str(key): value for key, value in row.items()}
