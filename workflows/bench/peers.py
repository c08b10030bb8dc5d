"""Where packages of peers lie: a directory beside the project's own packages, made when it is first needed."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from workflows.errors import OneFlowError

PINNED = Path(__file__).with_name("peers.txt")
PLACE = Path("build/peers")


def standing(place: Path = PLACE, pins: Path | None = None) -> Path | None:
    """The directory of the packages that `pins` names (PINNED where none is given) if they are installed."""
    directory = place / _name(pins or PINNED)
    return directory.resolve() if directory.is_dir() else None


def install(place: Path = PLACE, pins: Path | None = None) -> Path:
    """The directory of the packages that `pins` names (PINNED where none is given), installed where they are not.

    Raises:
        OneFlowError: pip cannot have them.
    """
    pins = pins or PINNED
    if found := standing(place, pins):
        return found
    place.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--target", str(made), "-r", str(pins)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        shutil.rmtree(made)
        cause = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        mend = "give this machine a network or an index that has them, once"
        raise OneFlowError(f"the packages in {pins.name}", cause, mend)
    os.replace(made, place / _name(pins))
    found = standing(place, pins)
    assert found is not None
    return found


def _name(pins: Path) -> str:
    return hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
