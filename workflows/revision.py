"""Which state of the program this is: its commit, and the packages that it runs with."""

import hashlib
import os
import subprocess
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

VARIABLE = "ONEFLOW_GIT_COMMIT"
DIRTY = "+changes"
LOCK = "requirements.lock"
ROOT = Path(__file__).parent.parent


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
    return f"{head}{DIRTY}" if _git("status", "--porcelain", "--untracked-files=no") else head


@cache
def lock_digest() -> tuple[str, str]:
    """SHA-256 of what fixes the packages, and what that is: requirements.lock, or the installed distributions.

    The lock's bytes count in a checkout. Elsewhere it is the sorted lines NAME==VERSION of what is installed.
    """
    lock = ROOT / LOCK
    if lock.is_file():
        return hashlib.sha256(lock.read_bytes()).hexdigest(), LOCK
    installed = {f"{d.metadata['Name'].lower()}=={d.version}" for d in distributions() if d.metadata["Name"]}
    text = "".join(f"{line}\n" for line in sorted(installed))
    return hashlib.sha256(text.encode()).hexdigest(), "installed distributions"


def commits_between(a: str, b: str) -> int | None:
    """How many commits lead from `a` to `b` (`git log a..b`); None where this checkout does not know both."""
    first, last = (commit.removesuffix(DIRTY) for commit in (a, b))
    count = _git("rev-list", "--count", f"{first}..{last}", "--")
    return None if count is None else int(count)


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
