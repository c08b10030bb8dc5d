"""Datasets as Hugging Face `datasets` keeps them on disk: Arrow files of save_to_disk, or of its cache."""

from collections.abc import Iterator

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.drafting import drafts
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.protocol import Draft, Reader, Refused
from workflows.corpus.sources.tables import arrow_rows
from workflows.corpus.sources.tabular import Tabular


class HuggingfaceReader(Reader):
    """Units are the Arrow files of a dataset; those of a dictionary of splits stand below the names of the splits."""

    main = (".arrow",)

    def is_main(self, path: str) -> bool:
        """An Arrow file, but not what `map` and `filter` left in the cache."""
        return super().is_main(path) and not path.rpartition("/")[2].startswith(("cache-", "tmp"))

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """One draft or refusal for each row; columns as for rows of JSON."""
        return drafts(arrow_rows(files), Tabular(source, files.images).plan, files.images)
