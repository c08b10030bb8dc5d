"""Parquet tables with images in a column, as bytes, {bytes, path}, names, or URLs."""

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.drafting import drafts
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.protocol import Draft, Reader, Refused, Split, same_stem
from workflows.corpus.sources.stored import StoredFile, StoredStream
from workflows.corpus.sources.tables import parquet_rows
from workflows.corpus.sources.tabular import Tabular
from workflows.errors import OneFlowError

SPLIT_BYTES = 1 << 30
"""A larger file is cut into units of about this size, between row groups."""


class TableReader(Reader):
    """Units are files, or runs of row groups of a large one."""

    main = (".parquet", ".parq")

    def beside(self, name: str) -> tuple[str, ...]:
        """The tar and the directory of the same stem."""
        return same_stem(name, self.main, ".tar", "/")

    def split(self, file: StoredFile | None) -> Sequence[Split]:
        """Runs of row groups, named by the first of each."""
        if file is None or file.size <= SPLIT_BYTES or file.url.startswith(("http://", "https://")):
            return ()
        try:
            with StoredStream(file) as stream, pq.ParquetFile(stream) as table:
                return _splits(table.metadata, file.size)
        except OneFlowError:
            raise
        except Exception:  # noqa: BLE001 a damaged footer is told when the file is read
            return ()


class ParquetReader(TableReader):
    """Columns as for rows of JSON."""

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """One draft or refusal for each row."""
        return drafts(parquet_rows(files), Tabular(source, files.images).plan, files.images)


def _splits(metadata: pq.FileMetaData, size: int) -> list[Split]:
    starts = [_start(metadata.row_group(g)) for g in range(metadata.num_row_groups)]
    footer = size - 8 - metadata.serialized_size
    if not starts or starts != sorted(starts):
        return []
    cuts = [0]
    for group, start in enumerate(starts):
        if group and start - starts[cuts[-1]] >= SPLIT_BYTES:
            cuts.append(group)
    ends = [*cuts[1:], len(starts)]
    return [
        Split(f"{a:06d}", ((starts[a], starts[b] if b < len(starts) else footer), (footer, size)), (a, b))
        for a, b in zip(cuts, ends, strict=True)
        if len(cuts) > 1
    ]


def _start(group: pq.RowGroupMetaData) -> int:
    columns = [group.column(c) for c in range(group.num_columns)]
    return min(c.dictionary_page_offset or c.data_page_offset for c in columns)
