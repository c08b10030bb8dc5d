"""Rows of named columns: pairs, questions, conversations, segments or plain text, whichever columns there are."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from oneflow_core.document import Role
from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.answers import chosen
from workflows.corpus.sources.conversation import turns
from workflows.corpus.sources.drafting import Plan, Segments, key_of, plan_of
from workflows.corpus.sources.images import Images
from workflows.corpus.sources.rows import RowError, field_of, fill, first_of, said, text_of

TEXTS = ("text", "caption", "txt", "sentence", "description", "alt_text", "captions")
IMAGES = (
    "image",
    "images",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "img",
    "image_bytes",
    "image_path",
    "file_name",
    "filename",
    "image_url",
    "url",
)
PROVENANCE = {"url": "url", "similarity": "similarity"}


class Tabular:
    """Makes plans of rows; columns that the config does not map are found by their usual names."""

    def __init__(self, source: SourceConfig, images: Images) -> None:
        self._source, self._images = source, images

    def plan(self, key: str, row: Mapping[str, Any]) -> Plan:
        """The plan of one row.

        Raises:
            RowError: a row that is no document.
        """
        row_id = field_of(row, self._source.column("id"))
        segments, extra = self._segments(row)
        return plan_of(key_of(row_id, key), segments, row, self._source, PROVENANCE, extra)

    def _segments(self, row: Mapping[str, Any]) -> tuple[Segments, dict[str, str]]:
        segments = field_of(row, self._source.column("segments"))
        if segments is not None:
            return self._given(segments), {}
        images = self._pictures(row)
        spoken = field_of(row, self._source.column("conversations"))
        if spoken is not None:
            return turns(spoken, images, self._images), {}
        question = field_of(row, self._source.column("question"))
        answer = self._answer(row)
        if question is not None and answer is not None:
            found, several = chosen(answer)
            prompt: Segments = [(self._images.picture(image), "prompt") for image in images]
            extra = {"answers": said(several)} if len(several) > 1 else {}
            return [*prompt, (text_of(question), "prompt"), (found, "target")], extra
        text = self._text(row)
        return [*((self._images.picture(image), "auto") for image in images), (text, "auto")], {}

    def _answer(self, row: Mapping[str, Any]) -> Any:
        if "answer" in self._source.columns:
            return field_of(row, self._source.columns["answer"])
        return first_of(row, ("answer", "answers"))

    def _text(self, row: Mapping[str, Any]) -> str:
        if self._source.caption != "{txt}":
            return fill(self._source.caption, lambda name: field_of(row, name))
        mapped = self._source.columns.get("text")
        value = field_of(row, mapped) if mapped is not None else first_of(row, TEXTS)
        if value is None:
            raise RowError("columns missing")
        if isinstance(value, list) and value:
            value = value[0]
        return text_of(value)

    def _pictures(self, row: Mapping[str, Any]) -> list[Any]:
        mapped = self._source.columns.get("image") or self._source.columns.get("images")
        if mapped is None:
            value = first_of(row, IMAGES)
        elif "{" in mapped:
            value = fill(mapped, lambda name: field_of(row, name), "image missing")
        else:
            value = field_of(row, mapped)
        if value is None:
            return []
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]

    def _given(self, parts: Any) -> Segments:
        if not isinstance(parts, list) or not parts:
            raise RowError("segments malformed")
        found: Segments = []
        for part in parts:
            if not isinstance(part, Mapping) or (part.get("text") is None) == (part.get("image") is None):
                raise RowError("segments malformed")
            role: Role = part.get("role") or "auto"
            if role not in get_args(Role):
                raise RowError("segments malformed")
            text = part.get("text")
            content = text_of(text) if text is not None else self._images.picture(part["image"])
            found.append((content, role))
        return found
