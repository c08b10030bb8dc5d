"""Where training is killed: S3 and MLflow of its own, two Ray nodes beside a head, a small corpus, and its victims."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from workflows.bench.loader_corpus import Kind, write_corpus
from workflows.errors import OneFlowError
from workflows.stack import StackConfig, status, up
from workflows.stack.config import RayConfig
from workflows.stack.process import stop
from workflows.stack.state import StateDirectory
from workflows.storage import exists, join, list_urls, open_fs, read_json

if TYPE_CHECKING:
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

STACK = StackConfig(ray=RayConfig(enabled=False), min_free_mb=0)
CORPUS = Kind((4, 4, 4), (4, 8), 200, 3)
LOG_EVERY = 10
EVERY = 20
RUN_TIMEOUT_S = 420.0
DEATH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 4,
}
"""Settings of Ray: a node that refuses connections is dead after 2 s; one that is only busy has 40 s to answer."""
PATIENCE = {"ONEFLOW_STORE_PATIENCE_S": "120", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
"""Of the drivers. Ray, which may take a dead node for a living one for a while, tries with fewer workers after 15 s
(60 by default)."""


class TrainDriver:
    """A running `oneflow train`."""

    def __init__(self, config: Path, environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self.out = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workflows", "train", str(config), "--json"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._read, self._keep)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> int:
        """The exit code, once it ended."""
        code = self.process.wait(RUN_TIMEOUT_S)
        for thread in self._threads:
            thread.join(10)
        return code

    def kill(self) -> None:
        """As a machine that goes down would end it."""
        self.process.kill()
        self.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit code that it ends with."""
        self.process.terminate()
        return self.wait()

    def report(self) -> dict[str, Any]:
        """What it printed as JSON.

        Raises:
            OneFlowError: it failed; the message has its last words.
        """
        if self.wait() != 0:
            raise OneFlowError("training", " | ".join(self.lines[-4:]), "see what it says")
        told: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return told

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(line.strip() for line in self.process.stderr)

    def _keep(self) -> None:
        assert self.process.stdout is not None
        self.out = self.process.stdout.read()


class TrainSite:
    """Runs of one config under names of their own; `state_dir` is the stack's, its environment is in `os.environ`.

    Two nodes have a CPU each; the head, where the drivers are, has none.
    """

    def __init__(self, state_dir: Path, seed: int = 0) -> None:
        self._state_dir, self._rng = state_dir, random.Random(seed)
        self._folder = Path(tempfile.mkdtemp(prefix="of-", dir="/tmp"))
        self._cluster: Cluster | None = None
        self._nodes: list[Node] = []
        self._drivers: list[TrainDriver] = []
        self._root = f"s3://oneflow/train-{self._folder.name}"

    @property
    def corpus(self) -> Path:
        """The corpus on local disk."""
        return self._folder / "corpus"

    def start(self) -> None:
        """Nodes are up, the corpus is on S3."""
        write_corpus(self.corpus, "faults", CORPUS)
        filesystem, path = open_fs(join(self._root, "corpus"))
        filesystem.put(f"{self.corpus}/", f"{path}/", recursive=True)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": DEATH}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={**head, "temp_dir": str(self._folder / "ray")}
        )
        for _ in range(2):
            self.add_node()

    def stop(self) -> None:
        """No process of it is left."""
        for driver in self._drivers:
            driver.kill()
        if self._cluster is not None:
            self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add_node(self) -> None:
        """One more node, as a cluster's autoscaler would bring."""
        assert self._cluster is not None
        self._nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20))

    def driver(self, name: str, **settings: Any) -> TrainDriver:
        """Trains the run `name`, or goes on with it; `settings` replace keys, `section__key=value` within a section."""
        path = self._folder / f"{name}.yaml"
        path.write_text(json.dumps(self.config(name, **settings)))
        assert self._cluster is not None
        environment = {"RAY_ADDRESS": self._cluster.address, **PATIENCE}
        self._drivers.append(TrainDriver(path, environment))
        return self._drivers[-1]

    def config(self, name: str, **settings: Any) -> dict[str, Any]:
        """The config of the run `name`, as `driver` trains it."""
        tree: dict[str, Any] = {
            "name": name,
            "model": {"dims": {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 128}},
            "data": {
                "corpora": [{"url": join(self._root, "corpus")}],
                "tokens": 512,
                "lanes": 2,
                "holdout": 0.1,
                "heldout_packs": 1,
                "cache_dir": str(self._folder / "cache" / name),
            },
            "optimiser": {"lr": 1e-3, "warmup_steps": 5},
            "budget": {"steps": 400},
            "checkpoint": {"url": join(self._root, "runs", name), "every_steps": EVERY, "keep": 3},
            "watch": {"log_every": LOG_EVERY, "heldout_every": 100, "sample_every": 100_000},
            "compute": {"workers": 2, "device": "cpu"},
            "registry": {"name": None},
            "tracking": {"experiment": "faults"},
        }
        for key, value in settings.items():
            section, _, field = key.partition("__")
            tree[section][field] = value
        return tree

    def root(self, name: str) -> str | None:
        """Where the run keeps its checkpoints; None before it wrote anything."""
        found = {url.split("/runs/")[1].split("/")[1] for url in list_urls(join(self._root, "runs", name))}
        return join(self._root, "runs", name, found.pop()) if found else None

    def newest(self, name: str) -> int:
        """The newest committed step, 0 before the first."""
        from workflows.training.checkpoint import committed_steps

        root = self.root(name)
        return max(committed_steps(root), default=0) if root else 0

    def attempts(self, name: str) -> list[dict[str, Any]]:
        """The attempts that came as far as training."""
        from workflows.training.attempts import read_attempts

        root = self.root(name)
        return read_attempts(root) if root else []

    def digests(self, name: str, step: int) -> list[Any]:
        """Name, size and SHA-256 of each file of the checkpoint of `step`: equal ones hold equal bits."""
        from workflows.training.commit import commit_name

        return list(read_json(join(str(self.root(name)), "commits", commit_name(step)))["files"])

    def has_commit(self, name: str, step: int) -> bool:
        """Whether `step` is committed and kept."""
        from workflows.training.commit import commit_name

        return exists(join(str(self.root(name)), "commits", commit_name(step)))

    def wait(self, what: str, condition: Callable[[], bool], driver: TrainDriver) -> None:
        """Until `condition` holds; OneFlowError when the driver ended before, or it takes too long."""
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while not condition():
            if driver.process.poll() is not None or time.monotonic() > deadline:
                told = " | ".join(driver.lines[-6:])
                raise OneFlowError("training", f"no {what}; {told}", "see what it says")
            time.sleep(0.1)

    def kill_worker(self) -> bool:
        """kill -9 of a training worker; False where there is none."""
        found = [p for node in self._nodes for p in _children(node) if "RayTrainWorker" in _title(p)]
        if not found:
            return False
        try:
            self._rng.choice(found).kill()
        except psutil.NoSuchProcess:
            return False
        return True

    def kill_node(self) -> None:
        """kill -9 of a node's raylet; its workers end because of that."""
        node = self._nodes.pop()
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def kill_service(self, name: str) -> None:
        """kill -9 of `s3` or `mlflow` and all that it started; `start_services` brings it back."""
        record = StateDirectory(self._state_dir).load().services[name]
        root = record.process()
        for process in [root, *root.children(recursive=True)] if root else []:
            process.kill()
        stop(record)

    def start_services(self) -> None:
        """What was killed is started again on its data and at its port."""
        up(STACK, self._state_dir)

    def history(self, name: str, metric: str) -> list[int]:
        """Steps of a metric in the order in which MLflow holds them, and the run's status and tags."""
        client, run = self.tracked(name)
        return [m.step for m in client.get_metric_history(run.info.run_id, metric)]

    def tracked(self, name: str) -> tuple[Any, Any]:
        """MLflow's client and the one run of `name`.

        Raises:
            OneFlowError: there are none or several.
        """
        from workflows.tracking import client_of

        client = client_of(str(status(self._state_dir).mlflow_url))
        experiment = client.get_experiment_by_name("faults")
        wanted = f"attributes.run_name LIKE '{name}-%'"
        runs = client.search_runs([experiment.experiment_id], wanted) if experiment else []
        if len(runs) != 1:
            raise OneFlowError("MLflow", f"{len(runs)} runs are called {name}", "one was expected")
        return client, runs[0]


def _children(node: "Node") -> list[psutil.Process]:
    try:
        return list(psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
