"""Directories of images with captions beside them, as img2dataset's `files` output and most people have them."""

from collections.abc import Iterator

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.members import MEMBER_BYTES, draft_of, failures, is_image
from workflows.corpus.sources.places import read_file
from workflows.corpus.sources.protocol import Draft, Reader, Refused
from workflows.corpus.sources.stored import StoredFile


class FolderReader(Reader):
    """A unit is one directory, without those below it; files with the same name up to the first dot are a sample."""

    rows = False

    def beside(self, name: str) -> tuple[str, ...]:
        """The table that img2dataset writes of what failed."""
        return (f"{name}.parquet",)

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """Pairs of the directory by name, then what the downloader's table beside it says had failed."""
        prefix, table = f"{files.main}/", f"{files.main}.parquet"
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
            picture = read_file(files, file)
            if picture.data is None:
                return Refused(key, picture.reason, file.name.encode())
            found[suffix] = picture.data
        return draft_of(key, found, source)
