"""Which state of the program this is."""

import os
import subprocess
from functools import cache
from pathlib import Path

VARIABLE = "ONEFLOW_GIT_COMMIT"


@cache
def git_commit() -> str:
    """The commit that is checked out, with "+changes" where files differ from it; "unknown" outside a checkout.

    A container image, which has no checkout, sets ONEFLOW_GIT_COMMIT.
    """
    if given := os.environ.get(VARIABLE):
        return given
    head = _git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return f"{head}+changes" if _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
