"""The link from a run to a corpus: its manifest, and the files of each of its sources."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from oneflow_core.data.manifest import Input, Manifest, ManifestError
from workflows.errors import OneFlowError
from workflows.storage import explained
from workflows.training.identity import CorpusRef
from workflows.urls import without_secrets

FEW = 3
"""Files that are shown of each source."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a corpus took from one source. `first` are a few of its files."""

    name: str
    files: int
    bytes: int
    first: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class CorpusLink:
    """A corpus as a run read it. Without a manifest, `gone` says why there is none."""

    ref: CorpusRef
    manifest: Manifest | None
    sources: tuple[Source, ...] = ()
    gone: str = ""

    def inputs(self) -> Iterator[Input]:
        """Every file that it was made from."""
        yield from self.manifest.inputs if self.manifest else ()

    def to_json(self, *, files: bool = False) -> dict[str, Any]:
        """A JSON object; `inputs` holds the first few files of each source, or all."""
        made = self.manifest
        inputs = self.inputs() if files else (entry for source in self.sources for entry in source.first)
        return {
            **asdict(self.ref),
            "gone": self.gone,
            "documents": made.totals.samples if made else None,
            "codec": (made.codec or "") if made else "",
            "encoder": (made.encoder or "") if made else "",
            "created_by": dict(made.created_by) if made else {},
            "sources": [{"source": s.name, "files": s.files, "bytes": s.bytes} for s in self.sources],
            "inputs": [asdict(entry) for entry in inputs],
        }


def corpus_link(ref: CorpusRef) -> CorpusLink:
    """The corpus that `ref` names, opened where it can be."""
    try:
        with explained(ref.url):
            manifest = Manifest.load(ref.url)
            return CorpusLink(ref, manifest, tuple(_sources(manifest)))
    except (OneFlowError, ManifestError) as error:
        cause = error.cause if isinstance(error, OneFlowError) else str(error)
        return CorpusLink(ref, None, gone=without_secrets(" ".join(cause.split())[:300]))


def _sources(manifest: Manifest) -> Iterator[Source]:
    """Counted in columns: a million files take a second."""
    if not len(manifest.inputs):
        return
    column = manifest.inputs.arrow["source"].combine_chunks().dictionary_encode()
    numbers, sizes = column.indices.to_numpy(), manifest.inputs.column("size")
    for number, name in sorted(enumerate(column.dictionary.to_pylist()), key=lambda pair: pair[1]):
        (places,) = np.nonzero(numbers == number)
        first = tuple(manifest.inputs[int(place)] for place in places[:FEW])
        yield Source(name, len(places), int(sizes[places].sum()), first)
