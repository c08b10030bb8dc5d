"""One MLflow run for one piece of work, continued after a restart, and never in the way of the work itself.

Everything is sent from a background thread. While the tracking server is away items wait in a bounded queue
and arrive later; the work neither waits nor fails.
"""

import contextlib
import dataclasses
import io
import json
import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workflows.outbox import Delivery, Outbox

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

RUN_KEY = "oneflow.run_key"
ATTEMPT = "oneflow.attempt"
COMMIT = "oneflow.git_commit"
FAILURE = "oneflow.failure"
PARENT_RUN = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
"""The description that MLflow's page of a run shows."""
FAILED_NOTE = "Failed: "
MAX_TAG = 5000
MAX_PARAM = 500
PARAMS_A_CALL = 100
METRICS_A_CALL = 500
PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a run is; runs of an experiment with an equal `key` are one run."""

    experiment: str
    name: str
    key: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    first_tags: Mapping[str, str] = field(default_factory=dict)
    """Tags that are set where the run has none of that name: descriptions, which a person may have changed."""
    experiment_tags: Mapping[str, str] = field(default_factory=dict)
    first_experiment_tags: Mapping[str, str] = field(default_factory=dict)
    """The same of the experiment; {experiment_id} in a value stands for its number."""


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """A corpus that a run reads: its version is the digest, its URL the source."""

    name: str
    version: str
    url: str
    profile: Mapping[str, Any] = field(default_factory=dict)
    context: str = "training"


@dataclass(slots=True)
class _Session:
    client: "MlflowClient"
    run_id: str
    attempt: int
    last_step: dict[str, int]
    """Last step that the server holds, by metric."""


@dataclass(frozen=True, slots=True)
class _Metrics:
    values: dict[str, float]
    step: int
    time_ms: int


class Tracker:
    """Metrics, images, texts and inputs of one run.

    Args:
        uri: the MLflow server, or a `sqlite:` or directory URI.
        spec: the run; one with the same key is continued, with `oneflow.attempt` one higher.
        capacity: items that wait at most while the server is away.
        retry_s: seconds between tries.
    """

    def __init__(self, uri: str, spec: RunSpec, *, capacity: int = 20_000, retry_s: float = 2.0) -> None:
        self._spec = spec
        # By this thread: the outbox's would import it while this one does, and see it half there.
        import mlflow  # noqa: F401

        self._outbox = Outbox(
            lambda: _open(uri, spec), _is_permanent, capacity=capacity, retry_s=retry_s, name="MLflow"
        )
        self._outbox.put(lambda session: _describe(session, spec), droppable=False)
        self._waiting: deque[_Metrics] = deque(maxlen=capacity)

    def run_id(self, timeout_s: float = 60.0) -> str | None:
        """The run's id; None when the server did not answer in `timeout_s`."""
        session = self._outbox.session(timeout_s)
        return session.run_id if session else None

    def attempt(self, timeout_s: float = 60.0) -> int | None:
        """1 for a new run, one more at each continuation; None when the server did not answer."""
        session = self._outbox.session(timeout_s)
        return session.attempt if session else None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log `values` at `step`; what an earlier attempt logged at it or later is not repeated."""
        held = _Metrics({name: float(value) for name, value in values.items()}, step, int(time.time() * 1000))
        self._put(held)

    def unsent(self) -> list[dict[str, Any]]:
        """Metrics that the server does not hold yet, as JSON; `resend` takes them in a later process.

        A process that is killed loses what waits in it: a checkpoint carries it over.
        """
        return [dataclasses.asdict(held) for held in list(self._waiting)]

    def resend(self, unsent: Sequence[Mapping[str, Any]]) -> None:
        """Log what `unsent` gave; what arrived after all is not repeated."""
        for held in unsent:
            self._put(_Metrics(dict(held["values"]), int(held["step"]), int(held["time_ms"])))

    def _put(self, held: "_Metrics") -> None:
        self._waiting.append(held)

        def send(session: _Session) -> None:
            _send_metrics(session, held.values, held.step, held.time_ms)
            with contextlib.suppress(ValueError):
                self._waiting.remove(held)

        self._outbox.put(send)

    def image(self, name: str, png: bytes, step: int) -> None:
        """Log a PNG under `name` at `step`: MLflow shows the images of a name as a series."""
        now = int(time.time() * 1000)
        self._outbox.put(lambda session: _send_image(session, name, png, step, now))

    def text(self, path: str, text: str) -> None:
        """Store `text` as the artifact `path` (txt, json, html, md, yaml)."""
        self._outbox.put(lambda session: session.client.log_text(session.run_id, text, path))

    def json(self, path: str, value: Any) -> None:
        """Store `value` as JSON as the artifact `path`."""
        self.text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        held = dict(tags)
        self._outbox.put(lambda session: _send_tags(session, held), droppable=False)

    def dataset(self, dataset: DatasetRef) -> None:
        """Record `dataset` as an input of the run."""
        self._outbox.put(lambda session: _send_dataset(session, dataset), droppable=False)

    def close(self, status: str | None = "FINISHED", timeout_s: float = 60.0) -> Delivery:
        """End the run as FINISHED, FAILED or KILLED once all is delivered, or give up after `timeout_s`.

        None leaves it running: another attempt is expected to go on.
        """
        if status is not None:
            self._outbox.put(lambda s: s.client.set_terminated(s.run_id, status), droppable=False)
        delivery = self._outbox.close(timeout_s)
        if delivery.pending or delivery.dropped:
            log.warning("tracking: %d items not delivered, %d dropped", delivery.pending, delivery.dropped)
        return delivery


def flat_params(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested config as dotted parameters; long values are cut at 500 characters."""
    params: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            params |= flat_params(value, f"{name}.")
        else:
            params[name] = (value if isinstance(value, str) else json.dumps(value))[:MAX_PARAM]
    return params


def find_run(uri: str, experiment: str, key: str) -> str | None:
    """Id of the newest run of `experiment` with `key`, or None; raises what the server raises."""
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    return _newest(client, found.experiment_id, key) if found else None


def end_run(uri: str | None, experiment: str, key: str, status: str, reason: str) -> None:
    """Mark the run of `key` as KILLED or FAILED, if there is one; a server that is away is only logged.

    The reason of a failure is in the tag `oneflow.failure` and in the run's description, until it is continued.
    """
    from mlflow.exceptions import MlflowException

    if not uri:
        return
    try:
        if run_id := find_run(uri, experiment, key):
            client = client_of(uri)
            if status == "FAILED":
                _describe_failure(client, run_id, reason[:MAX_TAG])
            client.set_terminated(run_id, status)
    except (MlflowException, OSError) as error:
        log.warning("the run in MLflow could not be ended: %s", error)


def run_status(uri: str, experiment: str, key: str) -> str | None:
    """Status of the run of `key` (RUNNING, FINISHED, ...), None where there is none; raises what the server raises."""
    run_id = find_run(uri, experiment, key)
    return str(client_of(uri).get_run(run_id).info.status) if run_id else None


def client_of(uri: str) -> "MlflowClient":
    """A client that gives up in time: a server that is away is not waited for."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _newest(client: "MlflowClient", experiment_id: str, key: str) -> str | None:
    runs = client.search_runs(
        [experiment_id], f"tags.`{RUN_KEY}` = '{key}'", max_results=1, order_by=["attributes.start_time DESC"]
    )
    return str(runs[0].info.run_id) if runs else None


def _open(uri: str, spec: RunSpec) -> _Session:
    client = client_of(uri)
    experiment_id = _experiment_id(client, spec.experiment)
    run_id = _newest(client, experiment_id, spec.key)
    if run_id is None:
        run = client.create_run(experiment_id, run_name=spec.name, tags={RUN_KEY: spec.key, ATTEMPT: "1"})
        return _Session(client, run.info.run_id, 1, {})
    data = client.get_run(run_id).data
    attempt = int(data.tags.get(ATTEMPT, "1")) + 1
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, ATTEMPT, str(attempt))
    if FAILURE in data.tags:
        client.delete_tag(run_id, FAILURE)
        client.set_tag(run_id, NOTE, _without_failure(data.tags.get(NOTE, "")))
    return _Session(client, run_id, attempt, {m.key: m.step for m in data.to_proto().metrics})


def _describe_failure(client: "MlflowClient", run_id: str, reason: str) -> None:
    note = _without_failure(client.get_run(run_id).data.tags.get(NOTE, ""))
    client.set_tag(run_id, FAILURE, reason)
    client.set_tag(run_id, NOTE, f"{FAILED_NOTE}{reason}\n\n{note}".strip())


def _without_failure(note: str) -> str:
    """A description as it was before the failure was written above it."""
    return note.partition("\n\n")[2] if note.startswith(FAILED_NOTE) else note


def _experiment_id(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        found = client.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    raise RuntimeError(f"MLflow says that experiment {name} exists and does not: it is deleted; restore it")


def _describe(session: _Session, spec: RunSpec) -> None:
    from mlflow.entities import Param

    run = session.client.get_run(session.run_id)
    known = run.data.params
    new = [Param(key, value) for key, value in spec.params.items() if key not in known]
    for start in range(0, len(new), PARAMS_A_CALL):
        session.client.log_batch(session.run_id, params=new[start : start + PARAMS_A_CALL])
    _send_tags(session, {**_unset(spec.first_tags, run.data.tags), **spec.tags})
    _describe_experiment(session, spec, run.info.experiment_id)


def _describe_experiment(session: _Session, spec: RunSpec, number: str) -> None:
    held = session.client.get_experiment(number).tags
    first = _unset(spec.first_experiment_tags, held)
    named = {key: value.replace("{experiment_id}", number) for key, value in first.items()}
    for key, value in {**named, **spec.experiment_tags}.items():
        if held.get(key) != value:
            session.client.set_experiment_tag(number, key, value)


def _unset(tags: Mapping[str, str], held: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not held.get(key)}


def _send_tags(session: _Session, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    session.client.log_batch(session.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])


def _send_metrics(session: _Session, values: Mapping[str, float], step: int, now: int) -> None:
    from mlflow.entities import Metric

    new = [Metric(k, v, now, step) for k, v in values.items() if step > session.last_step.get(k, -1)]
    for start in range(0, len(new), METRICS_A_CALL):
        session.client.log_batch(session.run_id, metrics=new[start : start + METRICS_A_CALL])
    session.last_step |= {metric.key: step for metric in new}


def _send_image(session: _Session, name: str, png: bytes, step: int, now: int) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        session.client.log_image(session.run_id, image, key=name, step=step, timestamp=now, synchronous=True)


def _send_dataset(session: _Session, ref: DatasetRef) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": ref.url})
    profile = json.dumps(dict(ref.profile), sort_keys=True)
    dataset = Dataset(ref.name, ref.version[:36], "uri", source, profile=profile)
    session.client.log_inputs(
        session.run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", ref.context)])]
    )


def _is_permanent(error: Exception) -> bool:
    return getattr(error, "error_code", None) in PERMANENT
