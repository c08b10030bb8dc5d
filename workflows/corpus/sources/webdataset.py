"""Image-text tars as webdataset and img2dataset write them: key.jpg, key.txt, key.json, side by side."""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.members import draft_of, failures
from workflows.corpus.sources.protocol import Draft, Refused, head


class WebdatasetReader:
    """A sample a run of members with the same key; where the key ends, as webdataset has it, at the first dot."""

    main: tuple[str, ...] = (".tar", ".tar.gz", ".tgz")
    companions: tuple[str, ...] = (".parquet",)

    def read(self, path: Path, source: SourceConfig) -> Iterator[Draft | Refused]:
        """Pairs of the tar, then what the downloader's table beside it says had failed."""
        seen: set[str] = set()
        try:
            for key, members, doubled in _samples(path):
                if key in seen or doubled:
                    yield Refused(key, "key twice", head(next(iter(members.values()))))
                else:
                    yield draft_of(key, members, source)
                seen.add(key)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            yield Refused(path.name, "file broken", head(f"{type(error).__name__}: {error}"))
        stem = path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
        yield from failures(path.parent / f"{stem}.parquet")


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes], bool]]:
    """Key, members by what follows it, and whether a member came twice."""
    current, members, doubled = "", dict[str, bytes](), False
    with tarfile.open(path) as tar:
        for info in tar:
            key, name = _split(info.name)
            if not info.isreg() or not name:
                continue
            if key != current and members:
                yield current, members, doubled
                members, doubled = {}, False
            current, doubled = key, doubled or name in members
            stream = tar.extractfile(info)
            members[name] = stream.read() if stream else b""
        if members:
            yield current, members, doubled
        _check_end(tar)


def _split(name: str) -> tuple[str, str]:
    """Key and the rest of a member's name; the rest is empty for what is no sample's file."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return "", ""
    parent = str(path.parent)
    return (stem if parent == "." else f"{parent}/{stem}"), suffix


def _check_end(tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the end: only zeros, or nothing, may follow the last member."""
    stream = tar.fileobj
    if stream is None:
        return
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}")
