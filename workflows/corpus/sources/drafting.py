"""From rows to drafts, for all formats whose rows name their images: keys, refusals, and fetching ahead in order."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from oneflow_core.document import Role
from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.images import Images, Pending
from workflows.corpus.sources.protocol import Draft, Picture, Refused, head
from workflows.corpus.sources.rows import Lookup, RowError, field_of, licence_of, meta_of, scalars
from workflows.urls import without_secrets

Content = str | Picture | Pending
Segments = list[tuple[Content, Role]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A draft whose pictures may still be on their way."""

    key: str
    segments: Segments
    licence: str
    meta: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        """Pictures that are not there yet."""
        return sum(isinstance(content, Pending) and not content.future.done() for content, _ in self.segments)

    def draft(self) -> Draft:
        """The draft, as soon as all its pictures are there."""
        settled = tuple(
            (c.future.result() if isinstance(c, Pending) else c, role) for c, role in self.segments
        )
        return Draft(self.key, settled, self.licence, self.meta, self.columns)


Row = tuple[str, Any]
"""A key and a mapping, or a Refused in its place."""
Maker = Callable[[str, Mapping[str, Any]], Plan]


def drafts(rows: Iterable[Row], make: Maker, images: Images) -> Iterator[Draft | Refused]:
    """A draft or a refusal for each row, in order, while the pictures of those that follow are fetched."""
    waiting: deque[Plan | Refused] = deque()
    seen: set[str] = set()
    error: Exception | None = None
    planned = (_planned(key, row, make) for key, row in rows)
    while True:
        try:
            plan = next(planned, None)
        except Exception as found:  # noqa: BLE001 told after the rows that were good
            plan, error = None, found
        if plan is None:
            break
        if isinstance(plan, Plan):
            if plan.key in seen:
                plan = Refused(plan.key, "key twice", b"")
            seen.add(plan.key)
        waiting.append(plan)
        while waiting and (_pending(waiting[0]) == 0 or sum(map(_pending, waiting)) > 2 * images.threads):
            yield _settled(waiting.popleft())
    yield from map(_settled, waiting)
    if error is not None:
        raise error


def plan_of(
    key: str,
    segments: Segments,
    row: Mapping[str, Any],
    source: SourceConfig,
    provenance: Mapping[str, str],
    extra: Mapping[str, str] | None = None,
) -> Plan:
    """A plan with the licence, the provenance and the columns of its row."""
    lookup: Lookup = lambda name: field_of(row, name)  # noqa: E731
    meta = {**meta_of(source, lookup, provenance), **(extra or {})}
    return Plan(key, segments, licence_of(source, lookup), meta, scalars(row))


def key_of(value: Any, otherwise: str) -> str:
    """A row's own id where it is text or a number."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return otherwise
    return without_secrets(str(value))


def shown(row: Any) -> bytes:
    """The first bytes of a row, for a refusal."""
    if isinstance(row, Mapping):
        row = {str(k): v if isinstance(v, str | int | float | None) else _brief(v) for k, v in row.items()}
    try:
        return head(json.dumps(row, ensure_ascii=False, default=str))
    except (ValueError, RecursionError):
        return head(type(row).__name__)


def _brief(value: Any) -> Any:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else value


def _planned(key: str, row: Any, make: Maker) -> Plan | Refused:
    if isinstance(row, Refused):
        return replace(row, key=row.key or key)
    if not isinstance(row, Mapping):
        return Refused(key, "row not an object", shown(row))
    try:
        return make(key, row)
    except RowError as error:
        return Refused(key, str(error), shown(row))


def _pending(plan: Plan | Refused) -> int:
    return plan.pending if isinstance(plan, Plan) else 0


def _settled(plan: Plan | Refused) -> Draft | Refused:
    return plan.draft() if isinstance(plan, Plan) else plan
