"""Image-text tars as webdataset and img2dataset write them: key.jpg, key.txt, key.json, side by side."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.members import MEMBER_BYTES, draft_of, failures, is_image
from workflows.corpus.sources.protocol import Draft, Reader, Refused, head, same_stem
from workflows.corpus.sources.tars import Member, members


class WebdatasetReader(Reader):
    """A sample a run of members with the same key; where the key ends, as webdataset has it, at the first dot."""

    main = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
    rows = False

    def beside(self, name: str) -> tuple[str, ...]:
        """The table that img2dataset writes of what failed."""
        return same_stem(name, self.main, ".parquet")

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """Pairs of the tar, then what the downloader's table beside it says had failed."""
        damage: Exception | None = None
        seen: set[str] = set()
        try:
            with files.plain() as stream:
                for sample in _samples(members(stream), files.limits.image_bytes):
                    yield sample.row(source, sample.key in seen)
                    seen.add(sample.key)
        except Exception as error:  # noqa: BLE001 told after the table
            damage = error
        for table in self.beside(files.main):
            if table in files.by_name:
                with files.seekable(table) as tabular:
                    yield from failures(table, tabular)
        if damage is not None:
            raise damage


@dataclass(slots=True)
class _Sample:
    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    reason: str | None = None

    def add(self, suffix: str, member: Member, largest: int) -> None:
        """Read a member, unless it must not be."""
        if suffix in self.members:
            self.reason = self.reason or "key twice"
        if member.reason is not None:
            self.reason = self.reason or member.reason
        elif is_image(suffix) and member.size > largest:
            self.reason = self.reason or "image too large"
        elif is_image(suffix) or member.size <= MEMBER_BYTES:
            self.members[suffix] = member.read()

    def row(self, source: SourceConfig, again: bool) -> Draft | Refused:
        """The pair, or why there is none."""
        reason = self.reason or ("key twice" if again else None)
        if reason is not None:
            return Refused(self.key, reason, head(next(iter(self.members.values()), b"")))
        return draft_of(self.key, self.members, source)


def _samples(found: Iterator[Member], largest: int) -> Iterator[_Sample]:
    """Runs of members; where the tar breaks, that before the break is the last, then the error is raised."""
    sample: _Sample | None = None
    damage: Exception | None = None
    while True:
        try:
            member = next(found, None)
        except Exception as error:  # noqa: BLE001 raised again below
            member, damage = None, error
        if member is None:
            break
        key, suffix = _split(member.name)
        if not suffix and member.reason is None:
            continue
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        sample.add(suffix, member, largest)
    if sample is not None:
        yield sample
    if damage is not None:
        raise damage


def _split(name: str) -> tuple[str, str]:
    """Key and the rest of a member's name, in small letters; the rest is empty for what is no sample's file."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return str(path), ""
    parent = str(path.parent)
    return (stem if parent == "." else f"{parent}/{stem}"), suffix.lower()
