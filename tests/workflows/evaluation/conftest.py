"""Evaluations that are not over keep their outputs in a home of each test's own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ONEFLOW_HOME", str(home))
    return home
