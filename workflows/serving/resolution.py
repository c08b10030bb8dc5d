"""`models:/name@alias` and `models:/name/version`: a model directory out of MLflow."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from oneflow_core.model_directory import INDEX
from oneflow_core.model_source import ModelSourceError

SCHEME = "models:/"


def resolve(url: str, into: Path) -> Mapping[str, str]:
    """Downloads the registered model's directory into `into` (empty); returns its name, version and run.

    Raises:
        ModelSourceError: no such model, version or alias, a server that does not answer, or no model of ours.
    """
    name, version, run_id = version_of(url)
    with _explained(url):
        _download(f"{SCHEME}{name}/{version}", into)
    return {"name": name, "version": version, "run_id": run_id}


def version_of(url: str) -> tuple[str, str, str]:
    """(name, version, run's id) of the version that `url` means now.

    Raises:
        ModelSourceError: as for `resolve`.
    """
    name, version, alias = parse(url)
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if not server:
        raise ModelSourceError(f"model {url}: MLFLOW_TRACKING_URI is not set; set it, or oneflow stack up")
    from workflows.tracking import client_of

    with _explained(url):
        client = client_of(server)
        found = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, version)
        )
    return name, str(found.version), found.run_id or ""


def fetch_file(url: str, path: str, into: Path) -> Path:
    """One file of a version's directory, by its path in it, downloaded into `into`; the rest is not fetched.

    Raises:
        ModelSourceError: as for `resolve`, or the version has no such file.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with _explained(url):
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(artifact_uri=f"{url}/{path}", dst_path=str(into)))


@contextmanager
def _explained(url: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise ModelSourceError(
            f"model {url}: {' '.join(str(error).split())[:300]}; check MLFLOW_TRACKING_URI and the registered "
            'models ("oneflow stack status" names the server)'
        ) from error


def parse(url: str) -> tuple[str, str, str]:
    """(name, version, alias) of `models:/name/version` or `models:/name@alias`; one of the last two is empty.

    Raises:
        ModelSourceError: neither form.
    """
    rest = url.removeprefix(SCHEME).strip("/")
    name, at, alias = rest.partition("@")
    if at:
        version = ""
    else:
        name, _, version = rest.partition("/")
    if not url.startswith(SCHEME) or not name or "/" in name or not (alias or version.isdigit()):
        raise ModelSourceError(
            f"model {url!r}: not a registered model; write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    return name, version, alias


def _download(url: str, into: Path) -> None:
    """The artifacts of a version, with the directory that holds `model_index.json` as the root."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f"{into.name}-") as scratch:
        root = Path(download_artifacts(artifact_uri=url, dst_path=scratch))
        found = sorted(root.rglob(INDEX), key=lambda p: len(p.parts))
        if not found:
            raise ModelSourceError(f"model {url}: no {INDEX} among its files; it is no model of OneFlow")
        shutil.copytree(found[0].parent, into, dirs_exist_ok=True)
