"""What is taken of what was kept: shares and weights, the same in every order and on every machine."""

from pathlib import Path

import numpy as np
import pytest

from tests.workflows.corpus.inputs import corpus, jsonl
from workflows.corpus.config import CorpusConfig
from workflows.corpus.ingest import UnitReport, ingest_unit, reports
from workflows.corpus.selection import select
from workflows.corpus.units import list_units
from workflows.errors import UsageError


def ingested(config: CorpusConfig) -> list[UnitReport]:
    units = list_units(config)
    for unit in units:
        ingest_unit(config, unit)
    return reports(config, units)


def two(folder: Path, a: dict[str, float], b: dict[str, float]) -> CorpusConfig:
    """Sources of 300 and of 100 texts."""
    for name, count in (("a", 300), ("b", 100)):
        jsonl(folder / f"{name}.jsonl", [{"id": str(i), "text": f"{name} {i}"} for i in range(count)])
    named = [
        {"name": n, "format": "jsonl", "urls": [str(folder / f"{n}.jsonl")], **more}
        for n, more in (("a", a), ("b", b))
    ]
    return corpus(folder / "root", *named)


def test_share_takes_some_and_counts_the_others(tmp_path: Path) -> None:
    config = two(tmp_path, {"share": 0.5}, {})
    units = ingested(config)
    selection = select(config, units)
    taken = int(selection.taken(0).sum())
    assert 110 < taken < 190 and selection.taken(1).all()
    assert selection.left_out(units) == {"a": {"left out by share": 300 - taken}, "b": {}}
    assert np.array_equal(select(config, units).taken(0), selection.taken(0))


def test_weights_bring_sources_to_their_proportion(tmp_path: Path) -> None:
    config = two(tmp_path, {"weight": 1}, {"weight": 2})
    units = ingested(config)
    selection = select(config, units)
    assert selection.taken(1).all()
    assert 30 < int(selection.taken(0).sum()) < 70


def test_a_weight_for_some_alone_is_refused(tmp_path: Path) -> None:
    config = two(tmp_path, {"weight": 1}, {})
    with pytest.raises(UsageError, match="source b: it has no weight"):
        select(config, ingested(config))
