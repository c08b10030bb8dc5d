"""Who made something: package version, commit, config; and nothing that differs from run to run."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from workflows.corpus.config import CorpusConfig


def created_by(config: CorpusConfig) -> dict[str, str]:
    """For a manifest: the package, the commit of its source tree ("unknown" when installed), the config's digest."""
    try:
        package = f"oneflow {version('oneflow')}"
    except PackageNotFoundError:
        package = "oneflow"
    return {"package": package, "git_commit": _commit(), "config_digest": config.digest()}


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
