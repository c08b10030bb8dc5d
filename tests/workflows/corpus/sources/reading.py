"""Reading a source as the jobs do, in process."""

from collections import Counter
from pathlib import Path
from typing import Any

from oneflow_core.document import Role
from tests.workflows.corpus.inputs import corpus
from workflows.corpus.sources import Draft, Picture, Refused
from workflows.corpus.units import list_units, opened

Read = tuple[list[Draft], Counter[str]]


def rows_of(
    kind: str, *urls: Path | str, root: str = "/tmp/oneflow-none", **source: Any
) -> list[Draft | Refused]:
    """Every row of every unit; reading again, and the rows of a second opening, must give the same."""
    config = corpus(root, {"name": "s", "format": kind, "urls": [str(url) for url in urls], **source})
    found: list[Draft | Refused] = []
    for unit in list_units(config):
        with opened(config, unit) as rows:
            first = list(rows)
        with opened(config, unit) as rows:
            assert list(rows) == first
        found += first
    return found


def read(kind: str, *urls: Path | str, **source: Any) -> Read:
    rows = rows_of(kind, *urls, **source)
    return [r for r in rows if isinstance(r, Draft)], Counter(
        r.reason for r in rows if isinstance(r, Refused)
    )


def seen(draft: Draft) -> list[tuple[str | bytes | None, Role]]:
    """Texts, and bytes of images, with their roles."""
    return [(c.data if isinstance(c, Picture) else c, role) for c, role in draft.segments]


def reasons(draft: Draft) -> list[str]:
    """Why the pictures that are not there are not."""
    return [c.reason for c, _ in draft.segments if isinstance(c, Picture) and c.data is None]
