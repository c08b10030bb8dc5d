from pathlib import Path

import pytest

from workflows.bench import peers
from workflows.bench.loader import PINS as LOADER
from workflows.errors import OneFlowError


def test_packages_that_cannot_be_had_are_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = tmp_path / "peers.txt"
    pinned.write_text("oneflow-no-such-package==0.0.1\n")
    monkeypatch.setattr(peers, "PINNED", pinned)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OneFlowError, match=r"peers\.txt: .*oneflow-no-such-package.*network"):
        peers.install(tmp_path / "peers")
    assert peers.standing(tmp_path / "peers") is None
    assert list((tmp_path / "peers").iterdir()) == []


def test_other_pins_are_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = tmp_path / "peers.txt"
    monkeypatch.setattr(peers, "PINNED", pinned)
    pinned.write_text("")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    place = peers.install(tmp_path / "peers")
    assert peers.install(tmp_path / "peers") == place == peers.standing(tmp_path / "peers")
    pinned.write_text("# other\n")
    assert peers.standing(tmp_path / "peers") is None


@pytest.mark.parametrize("pins", [peers.PINNED, LOADER])
def test_every_pin_is_exact(pins: Path) -> None:
    lines = [line for line in pins.read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(line.count("==") == 1 for line in lines)
    assert not [line for line in lines if line.split("==")[0] in ("torch", "torchvision", "numpy")]
