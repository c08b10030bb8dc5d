"""All that is known of one run, out of MLflow: config, corpora, code, machine, curves, evaluations, versions."""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflows.config import flattened
from workflows.runs.curves import STEP_S, TOKENS_PER_S, Histories, read
from workflows.tracking import ATTEMPT, COMMIT, RUN_KEY
from workflows.training.identity import CORPORA, LOCK, CorpusRef, config_path, corpora_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CURVED = ("heldout/", "train/")
"""Groups of metrics whose histories are compared."""
UNCURVED = ("train/progress", "train/kappa/")
"""Of these, what says where a run is, not how it does."""
FIRST = "heldout/loss"
ENVIRONMENT = ("torch", "device", "world_size")
EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus that a run read, and the totals that its manifest had."""

    ref: CorpusRef
    totals: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Record:
    """One run. `config` is flat, by dotted key; `metrics` are the latest values that are numbers."""

    id: str
    name: str
    experiment: str
    status: str
    began_ms: int
    ended_ms: int | None
    tags: Mapping[str, str]
    config: Mapping[str, Any]
    corpora: tuple[Corpus, ...]
    metrics: Mapping[str, float]
    histories: Histories
    evaluations: Mapping[str, Mapping[str, Any]]
    """What each suite's metrics.json holds."""
    versions: tuple[str, ...]
    """NAME/VERSION of the model versions that came of it."""

    @property
    def key(self) -> str:
        """Its run key; "" where it is no run of `oneflow train`."""
        return self.tags.get(RUN_KEY, "")

    @property
    def attempts(self) -> int:
        """How often it was begun."""
        return int(self.tags.get(ATTEMPT, "1"))

    @property
    def commit(self) -> str:
        """The commit of its newest attempt, with "+changes" where files differed."""
        return self.tags.get(COMMIT, "")

    @property
    def lock(self) -> str:
        """Digest of what fixed its packages; "" where it was not kept."""
        return self.tags.get(LOCK, "")

    @property
    def environment(self) -> dict[str, str]:
        """Version of torch, device and number of workers of its newest attempt."""
        given = {name: self.tags.get(f"oneflow.{name}", "") for name in ENVIRONMENT}
        given["world_size"] = given["world_size"] or str(self.config.get("compute.workers", ""))
        return given

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return int(max((points[-1][0] for points in self.histories.points.values()), default=0))

    def to_json(self) -> dict[str, Any]:
        """What `oneflow runs show --json` prints."""
        return {
            "id": self.id,
            "name": self.name,
            "experiment": self.experiment,
            "key": self.key,
            "status": self.status,
            "attempts": self.attempts,
            "began_ms": self.began_ms,
            "ended_ms": self.ended_ms,
            "step": self.step,
            "commit": self.commit,
            "lock_sha256": self.lock,
            "environment": self.environment,
            "corpora": [corpus_json(corpus) for corpus in self.corpora],
            "metrics": dict(self.metrics),
            "versions": list(self.versions),
            "evaluations": {suite: found.get("metrics", {}) for suite, found in self.evaluations.items()},
            "config": dict(self.config),
        }


def corpus_json(corpus: Corpus) -> dict[str, Any]:
    """A corpus as `--json` shows it."""
    ref = corpus.ref
    names = {"name": ref.name, "version": ref.version, "url": ref.url, "manifest_sha256": ref.manifest_sha256}
    return {**names, **corpus.totals}


def record_of(client: "MlflowClient", run: "Run") -> Record:
    """All that the server says of `run`; what a run of old has not is left empty."""
    info, data = run.info, run.data
    curved = {k for k in data.metrics if k.startswith(CURVED) and not k.startswith(UNCURVED)}
    wanted = sorted(curved | ({STEP_S, TOKENS_PER_S} & data.metrics.keys()))
    versions = client.search_model_versions(f"run_id = '{info.run_id}'")
    return Record(
        id=info.run_id,
        name=info.run_name or "",
        experiment=client.get_experiment(info.experiment_id).name,
        status=info.status,
        began_ms=info.start_time,
        ended_ms=info.end_time,
        tags=data.tags,
        config=flattened(config_of(client, run)),
        corpora=_corpora(run),
        metrics={name: value for name, value in data.metrics.items() if math.isfinite(value)},
        histories=read(client, info.run_id, wanted),
        evaluations=_evaluations(client, info.run_id),
        versions=tuple(sorted(f"{v.name}/{v.version}" for v in versions)),
    )


def config_of(client: "MlflowClient", run: "Run") -> dict[str, Any]:
    """The config that the run's newest attempt had: its artifact, or its parameters where that cannot be had."""
    found = config_artifact(client, run.info.run_id)
    return _nested(run.data.params) if found is None else found


def config_artifact(client: "MlflowClient", run_id: str, digest: str = "") -> dict[str, Any] | None:
    """The config of a run's newest attempt, or the one with `digest`; None where it cannot be had."""
    found = _artifact(client, run_id, config_path(digest) if digest else "config.json")
    return dict(found) if isinstance(found, dict) else None


def pinned_config(client: "MlflowClient", run: "Run") -> str:
    """The run's config as YAML, with each corpus at the version that the run read, not at what is newest now."""
    import yaml

    tree = config_of(client, run)
    given = tree.get("data", {}).get("corpora", [])
    for entry, ref in zip(given, corpora_of(run.data.tags), strict=False):
        entry["url"] = ref.url
    return yaml.safe_dump(tree, sort_keys=False)


def _nested(params: Mapping[str, str]) -> dict[str, Any]:
    """Parameters as the config that they were: values are JSON, or strings as they stand."""
    found: dict[str, Any] = {}
    for key, text in params.items():
        *sections, last = key.split(".")
        node = found
        for section in sections:
            node = node.setdefault(section, {})
        try:
            node[last] = json.loads(text)
        except ValueError:
            node[last] = text
    return found


def _corpora(run: "Run") -> tuple[Corpus, ...]:
    """By the run's tag; totals by its dataset inputs, which are all that a run of old has."""
    given = [entry.dataset for entry in run.inputs.dataset_inputs] if run.inputs else []
    profiles = {(d.name, d.digest): json.loads(d.profile or "{}") for d in given}
    refs = corpora_of(run.data.tags) if CORPORA in run.data.tags else tuple(_old(d) for d in given)
    found = []
    for ref in refs:
        profile = profiles.get((ref.name, ref.version[:36]), {})
        found.append(Corpus(ref, {k: v for k, v in profile.items() if isinstance(v, int)}))
    return tuple(found)


def _old(dataset: Any) -> CorpusRef:
    url = str(json.loads(dataset.source).get("uri", "")).removesuffix("/manifest.json")
    return CorpusRef(dataset.name, dataset.digest, url, "")


def _evaluations(client: "MlflowClient", run_id: str) -> dict[str, Mapping[str, Any]]:
    from mlflow.exceptions import MlflowException

    try:
        suites = [Path(a.path).name for a in client.list_artifacts(run_id, EVALUATION) if a.is_dir]
    except (MlflowException, OSError):
        return {}
    found = {s: _artifact(client, run_id, f"{EVALUATION}/{s}/metrics.json") for s in suites}
    return {suite: dict(tree) for suite, tree in found.items() if isinstance(tree, dict)}


def _artifact(client: "MlflowClient", run_id: str, path: str) -> Any:
    """A JSON artifact, or None where it is not there or its store does not answer."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="oneflow-runs-") as directory:
        try:
            return json.loads(Path(client.download_artifacts(run_id, path, directory)).read_text("utf-8"))
        except (MlflowException, OSError, ValueError):
            return None
