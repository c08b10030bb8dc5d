"""LLaVA's instructions: [{id, image, conversations: [{from, value}]}], images at the `<image>` marks."""

from collections.abc import Iterator, Mapping
from typing import Any

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.conversation import turns
from workflows.corpus.sources.drafting import Plan, drafts, key_of, plan_of
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.json_rows import DOCUMENTS, LINES, json_rows
from workflows.corpus.sources.protocol import Draft, Reader, Refused, same_stem
from workflows.corpus.sources.rows import RowError, field_of, first_of

SPOKEN = ("conversations", "messages", "conversation", "texts")
PROVENANCE = {"id": "id", "image": "image", "url": "url"}


class LlavaReader(Reader):
    """A document is a whole conversation."""

    main = (*LINES, *DOCUMENTS)

    def beside(self, name: str) -> tuple[str, ...]:
        """The tar and the directory of the same stem."""
        return same_stem(name, self.main, ".tar", "/")

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """One draft or refusal for each conversation, of an array or of lines."""

        def make(key: str, row: Mapping[str, Any]) -> Plan:
            spoken = (
                field_of(row, source.columns["conversations"]) if "conversations" in source.columns else None
            )
            images = _images(row, source)
            segments = turns(spoken if spoken is not None else first_of(row, SPOKEN), images, files.images)
            return plan_of(key_of(field_of(row, source.column("id")), key), segments, row, source, PROVENANCE)

        return drafts(json_rows(files), make, files.images)


def _images(row: Mapping[str, Any], source: SourceConfig) -> list[Any]:
    mapped = source.columns.get("image")
    found = field_of(row, mapped) if mapped is not None else first_of(row, ("image", "images"))
    if found is None:
        return []
    if not isinstance(found, str | list):
        raise RowError("image name not a string")
    return found if isinstance(found, list) else [found]
