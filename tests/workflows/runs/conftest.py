from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient


@pytest.fixture(scope="package")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """A client of a tracking store of these tests, whose experiments keep artifacts beside it."""
    directory = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{directory}/mlflow.db"
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    found = MlflowClient(uri)
    for name in ("tiny", "other", "lineage", "notes"):
        found.create_experiment(name, artifact_location=str(directory / name))
    yield found
    patch.undo()
