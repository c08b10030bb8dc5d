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


def standing(place: Path = PLACE) -> Path | None:
    """The directory of the pinned packages if they are installed, named by the digest of the pins."""
    directory = place / hashlib.sha256(PINNED.read_bytes()).hexdigest()[:12]
    return directory.resolve() if directory.is_dir() else None


def install(place: Path = PLACE) -> Path:
    """The directory of the pinned packages, installed with pip where they are not.

    Raises:
        OneFlowError: pip cannot have them.
    """
    if found := standing(place):
        return found
    place.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--target", str(made), "-r", str(PINNED)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        shutil.rmtree(made)
        cause = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        mend = "give this machine a network or an index that has them, once"
        raise OneFlowError(f"the packages in {PINNED.name}", cause, mend)
    os.replace(made, place / hashlib.sha256(PINNED.read_bytes()).hexdigest()[:12])
    found = standing(place)
    assert found is not None
    return found
