"""What is stored of one unit: its part of documents, whose footer says what became of each row, and its refusals.

Parts are never changed. What a retry gives lies beside what was there, as part-....1, .2 and so on: the last counts.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from oneflow_core.data.manifest import Account, Input
from oneflow_core.data.shard import document_bytes
from oneflow_core.document import Document
from workflows.corpus.accounts import closed
from workflows.corpus.config import CorpusConfig
from workflows.corpus.duplicates import content_digest, picture_digest, text_digest
from workflows.corpus.parts import PartWriter, list_parts
from workflows.corpus.sources import Refused
from workflows.corpus.units import Unit
from workflows.storage import join

DOCUMENTS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("document", pa.string()),
        ("images", pa.list_(pa.string())),
        ("text_bytes", pa.int64()),
        ("content", pa.binary(16)),  # the same for documents of the same segments
        ("pictures", pa.binary(16)),  # the same for documents that show the same
        ("texts", pa.binary(8)),  # of instructions: the same for those that say the same
    ]
)
QUARANTINE = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("head", pa.binary()),
    ]
)
"""What is kept of a refused row; the parts of later stages may have more columns."""
REASONS = 100
"""Most distinct reasons of a unit that are counted apart."""


@dataclass(frozen=True, slots=True)
class UnitReport:
    """A unit with its part and what the part's footer says of it."""

    unit: Unit
    url: str
    sha256: str
    account: Account
    images: int
    """Image segments in the part, an image that is used twice counted twice."""
    document_bytes: int
    """Bytes of the documents as JSON."""
    documents_sha256: str
    """Digest of the documents: the same input may give others, when what it points at is mended."""
    cleaned: int
    """Texts that clean-up changed."""
    columns: tuple[str, ...]
    """Names of columns of the first rows, for filters."""

    @classmethod
    def of_facts(cls, unit: Unit, url: str, facts: Mapping[str, Any]) -> "UnitReport":
        """What a part's footer says.

        Raises:
            OneFlowError: the account does not close.
        """
        account = closed(unit.main, Account(facts["read"], facts["kept"], facts["refused"]))
        rest = {name: facts[name] for name in ("images", "document_bytes", "documents_sha256", "cleaned")}
        return cls(unit, url, facts["sha256"], account, columns=tuple(facts["columns"]), **rest)

    @property
    def quarantine(self) -> str:
        """URL of the part of what was refused of the unit, if anything was."""
        return quarantine_of(self.url)

    @property
    def input(self) -> Input:
        """The unit as a manifest names it."""
        return Input(
            self.unit.source, self.unit.name, self.unit.main, self.unit.size, self.unit.etag, self.sha256
        )


class UnitWriter:
    """The two parts of a unit, written row by row. Nothing is there before `commit`; use it in `with`."""

    def __init__(self, config: CorpusConfig, unit: Unit, attempt: int = 0) -> None:
        self._root, self._unit, self._name = config.root, unit, _name(part_of(config, unit), attempt)
        self._documents, self._refused = PartWriter(DOCUMENTS), PartWriter(QUARANTINE)
        self._reasons, self._digest = Counter[str](), hashlib.sha256()
        self._images = self._bytes = self._cleaned = 0
        self._columns: tuple[str, ...] = ()

    def __enter__(self) -> "UnitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._documents.__exit__()
        self._refused.__exit__()

    @property
    def kept(self) -> int:
        """Documents so far."""
        return self._documents.count

    def keep(self, document: Document, cleaned: int) -> None:
        """One more document, of which clean-up changed `cleaned` texts."""
        row = _row(document)
        raw = row["document"].encode()
        self._documents.add(row, len(raw) + 128 * len(row["images"]))
        self._digest.update(raw + b"\n")
        self._images, self._bytes = self._images + len(row["images"]), self._bytes + len(raw)
        self._cleaned += cleaned

    def refuse(self, refused: Refused) -> None:
        """One more row that is no document."""
        known = refused.reason in self._reasons or len(self._reasons) < REASONS
        reason = refused.reason if known else "other"
        self._reasons[reason] += 1
        key = refused.key.encode("utf-8", "backslashreplace").decode()
        row = {"source": self._unit.source, "file": self._unit.main, "key": key}
        self._refused.add(row | {"reason": reason, "head": refused.head}, len(refused.head) + 128)

    def note_columns(self, names: Sequence[str]) -> None:
        """Names of a row's columns; those of the first row that has some are told in the footer."""
        if not self._columns:
            self._columns = tuple(sorted(names)[:50])

    def commit(self, read: int, sha256: str) -> Account:
        """Put both parts, that of the documents last: it says that the unit of `sha256` and `read` rows is done.

        Raises:
            OneFlowError: the account does not close; storage that fails.
        """
        account = closed(self._unit.main, Account(read, self._documents.count, dict(self._reasons)))
        documents = join(self._root, "documents", self._unit.source, f"{self._name}.parquet")
        if self._refused.count:
            self._refused.put(quarantine_of(documents), {"unit": self._unit.main})
        facts = {"sha256": sha256, "read": read, "kept": account.kept, "refused": account.refused}
        facts |= {"images": self._images, "document_bytes": self._bytes, "cleaned": self._cleaned}
        facts |= {"documents_sha256": self._digest.hexdigest(), "columns": self._columns}
        self._documents.put(documents, facts)
        return account


def part_of(config: CorpusConfig, unit: Unit) -> str:
    """Name of the unit's parts before any retry: part-<of the unit's name>-<of all that decides its documents>."""
    own = hashlib.sha256(unit.name.encode()).hexdigest()[:12]
    return f"part-{own}-{unit.part(config).removeprefix('part-')}"


def stored(config: CorpusConfig) -> dict[tuple[str, str], tuple[int, str]]:
    """(source, name of a part) -> the last attempt at it and the URL of its documents, for what is there."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for source in config.sources:
        for name, url in list_parts(config.root, "documents", source.name).items():
            base, attempt = attempt_of(name)
            found[source.name, base] = max(found.get((source.name, base), (-1, "")), (attempt, url))
    return found


def attempt_of(name: str) -> tuple[str, int]:
    """The name of a part without its attempt, and that."""
    base, dot, attempt = name.partition(".")
    return base, int(attempt) if dot and attempt.isdigit() else 0


def quarantine_of(documents: str) -> str:
    """URL of the part of refusals that goes with the part `documents`."""
    root, _, source, name = documents.rsplit("/", 3)
    return join(root, "quarantine", "ingest", name.replace("part-", f"part-{source}-", 1))


def _name(base: str, attempt: int) -> str:
    return f"{base}.{attempt}" if attempt else base


def _row(document: Document) -> dict[str, Any]:
    return {
        "doc_id": document.doc_id,
        "source": document.source,
        "licence": document.licence,
        "document": document_bytes(document).decode(),
        "images": [image.sha256 for image in document.images],
        "text_bytes": sum(len(text.text.encode()) for text in document.texts),
        "content": content_digest(document),
        "pictures": picture_digest(document),
        "texts": text_digest(document),
    }
