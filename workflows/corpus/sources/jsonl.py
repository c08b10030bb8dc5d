"""Rows of JSON: questions about an image, conversations, interleaved segments, captions, or plain text.

Images are named in the rows and lie in a tar, or in a directory, of the same stem as the file, or where `images` says.
"""

from collections.abc import Iterator

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.drafting import drafts
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.json_rows import LINES, json_rows
from workflows.corpus.sources.protocol import Draft, Reader, Refused, same_stem
from workflows.corpus.sources.tabular import Tabular


class JsonlReader(Reader):
    """Kinds of rows: {segments}, {conversations}, {question, answer, image?}, {text, image?}; with id and licence."""

    main = LINES

    def beside(self, name: str) -> tuple[str, ...]:
        """The tar and the directory of the same stem."""
        return same_stem(name, self.main, ".tar", "/")

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """One draft or refusal for each line that is not blank."""
        return drafts(json_rows(files), Tabular(source, files.images).plan, files.images)
