"""Diff: held against what was done to the documents, shard borders aside."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, ImageSegment, TextSegment
from tests.workflows.corpus.written import write_version
from workflows.corpus.diff import diff


def sample(name: int, text: int, image: int) -> Sample:
    """A captioned image: text and latent by number."""
    latent = np.full((1, 2, 2), image, np.float16)
    segments = (ImageSegment("0" * 64, 8, 8), TextSegment(f"text {text}"))
    return Sample(Document(f"s/f/{name}", "s", "MIT", segments), (latent,))


numbers = st.dictionaries(st.integers(0, 30), st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1)


@settings(max_examples=25)
@given(a=numbers, b=numbers, sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_documents_that_came_went_and_changed(
    tmp_path_factory: pytest.TempPathFactory,
    a: dict[int, tuple[int, int]],
    b: dict[int, tuple[int, int]],
    sizes: tuple[int, int],
) -> None:
    folder = tmp_path_factory.mktemp("diff")
    for name, held, size in (("a", a, sizes[0]), ("b", b, sizes[1])):
        write_version(folder / name / "1", [sample(n, *held[n]) for n in held], size)
    found = diff(str(folder / "a/1"), str(folder / "b/1"))
    said = {(d.change, int(d.key.split("_")[2].split("-")[0])): d.members for d in found.documents}
    meant = {("came", n): () for n in b.keys() - a.keys()} | {("went", n): () for n in a.keys() - b.keys()}
    for n in a.keys() & b.keys():
        if a[n] != b[n]:
            names = (a[n][1] != b[n][1], "0.latent.npy"), (a[n][0] != b[n][0], "json")
            meant["changed", n] = tuple(name for differs, name in names if differs)
    assert said == meant
    assert found.same == sum(a[n] == b[n] for n in a.keys() & b.keys())


def test_a_corpus_differs_from_itself_in_nothing(tmp_path: Path) -> None:
    write_version(tmp_path / "a/1", [sample(n, 0, 0) for n in range(5)], 2)
    found = diff(str(tmp_path / "a/1"), str(tmp_path / "a/1"))
    assert found.documents == () and found.same == 5 and found.inputs == ()
    assert json.loads(json.dumps(found.to_json()))["changed"] == 0
