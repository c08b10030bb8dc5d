"""Directories of images with captions beside them, as img2dataset's `files` output and most people have them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.members import draft_of, failures
from workflows.corpus.sources.protocol import Draft, Refused


class FolderReader:
    """A unit is one directory, without those below it; files with the same name up to the first dot are a sample."""

    main: tuple[str, ...] = ()
    companions: tuple[str, ...] = (".parquet",)

    def read(self, path: Path, source: SourceConfig) -> Iterator[Draft | Refused]:
        """Pairs of the directory by name, then what the downloader's table beside it says had failed."""
        samples: dict[str, dict[str, Path]] = {}
        for file in sorted(p for p in path.iterdir() if p.is_file()):
            stem, _, suffix = file.name.partition(".")
            if stem and suffix:
                samples.setdefault(stem, {})[suffix] = file
        for key, files in sorted(samples.items()):
            yield draft_of(key, _read(files), source)
        yield from failures(path.with_name(f"{path.name}.parquet"))


def _read(files: Mapping[str, Path]) -> dict[str, bytes]:
    return {suffix: file.read_bytes() for suffix, file in files.items()}
