"""A training run holds a lease on the versions that it reads, for as long as it reads them."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from oneflow_core.data.manifest import Manifest
from tests.workflows.corpus.test_gc import samples
from tests.workflows.corpus.written import write_version
from workflows.leases import survey
from workflows.training import train
from workflows.training.config import TrainConfig


class Fitted(Exception):
    """Training would go on from here."""


def test_the_controller_holds_a_lease_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path / "shards" / "c" / "v1", samples("a"), 1)
    manifest = Manifest.load(str(tmp_path / "shards" / "c" / "v1"))
    seen: list[str] = []

    def fit(config: TrainConfig, key: str, root: str, begun: float, say: object, callbacks: object) -> None:
        seen.extend(survey(str(tmp_path)).live)
        raise Fitted

    materials = SimpleNamespace(manifests=(manifest,), run_key="key", corpus_version="c@v1", start=None)
    monkeypatch.setattr(train, "gather", lambda config: materials)
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "ended", lambda config, root: False)
    monkeypatch.setattr(train, "end_run", lambda *arguments: None)
    config = SimpleNamespace(
        out=str(tmp_path / "out"),
        compute=SimpleNamespace(workers=1),
        tracking=SimpleNamespace(experiment="e", uri=None),
    )
    monkeypatch.setattr(train, "run_root", lambda config, key: str(tmp_path / "out"))
    monkeypatch.setattr(train, "tracking_uri", lambda config: None)
    with pytest.raises(Fitted):
        train.run(config, say=lambda line: None)  # type: ignore[arg-type]
    assert len(seen) == 1 and seen[0].startswith("read-c-v1-")
    assert survey(str(tmp_path)).live == {}
