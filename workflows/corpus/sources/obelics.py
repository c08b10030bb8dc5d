"""OBELICS: Parquet with parallel lists `images` and `texts`, of which one is null at each place."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.drafting import Plan, Segments, drafts, key_of, plan_of
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.images import Images
from workflows.corpus.sources.parquet import TableReader
from workflows.corpus.sources.protocol import Draft, Refused
from workflows.corpus.sources.rows import RowError, field_of, text_of
from workflows.corpus.sources.tables import parquet_rows

PROVENANCE = {"url": "general_metadata.url", "warc": "general_metadata.warc_filename"}


class ObelicsReader(TableReader):
    """An image is a URL, a name, bytes or {bytes, path}; `metadata` and `general_metadata` are JSON texts."""

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """One draft or refusal for each row."""

        def make(key: str, row: Mapping[str, Any]) -> Plan:
            images, texts = row.get(source.column("images")), row.get(source.column("texts"))
            about = {
                k: v for k, v in row.items() if k not in (source.column("images"), source.column("texts"))
            }
            for name in ("metadata", "general_metadata"):
                about[name] = _parsed(
                    about.get(source.columns.get("metadata", name) if name == "metadata" else name)
                )
            segments = _segments(images, texts, files.images)
            if isinstance(about["metadata"], list):
                del about["metadata"]
            key = key_of(field_of(row, source.column("id")), key)
            return plan_of(key, segments, about, source, PROVENANCE)

        return drafts(parquet_rows(files), make, files.images)


def _segments(images: Any, texts: Any, places: Images) -> Segments:
    if not isinstance(images, list) or not isinstance(texts, list):
        raise RowError("columns missing")
    if len(images) != len(texts) or not images:
        raise RowError("lists not parallel")
    segments: Segments = []
    for image, text in zip(images, texts, strict=True):
        if (image is None) == (text is None):
            raise RowError("lists not parallel")
        if text is None:
            segments.append((places.picture(image), "auto"))
        elif text_of(text).strip():
            segments.append((text, "auto"))
    if not segments:
        raise RowError("text empty")
    return segments


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
