"""Where builds are killed: a stack of its own, a small corpus, a driver that tells how far it is, and its victims."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil

from workflows.errors import OneFlowError
from workflows.stack import StackConfig, down, status, up
from workflows.stack.config import MlflowConfig, RayConfig
from workflows.stack.environment import read
from workflows.store_retries import PATIENCE

STAGES = ("ingest", "encode", "shard")
TASKS = {
    "ingest": r"ray::.*(_worked|_Ingest)",
    "encode": r"ray::.*Encoder",
    "shard": r"ray::.*(_whole|_Join|_Write|Shuffle|Reduce|Hash)",
}
"""What the worker processes of a stage are named after."""
TARS, IMAGES, PIXELS = 8, 24, 64
BUILD_TIMEOUT_S = 420.0
ENDED = re.compile(r"(\w+): .* in [\d.,]+ s\b")


class Driver:
    """A running `oneflow corpus build`; its progress lines tell in which stage it is."""

    def __init__(self, config: Path, environment: Mapping[str, str]) -> None:
        self.stage, self._lines = "", list[str]()
        self.lasts: dict[str, float] = {}
        """Seconds from the first to the last line of a stage."""
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workflows", "corpus", "build", str(config), "--json"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._read, self._keep)]
        self._out = ""
        for thread in self._threads:
            thread.start()

    def reaches(self, stage: str) -> bool:
        """Wait until `stage` begins; False where the driver ended before."""
        with self._changed:
            self._changed.wait_for(lambda: self.stage in (stage, "ended"), BUILD_TIMEOUT_S)
            return self.stage == stage

    def kill(self) -> None:
        """As a machine that goes down would end it."""
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """The exit code, once it ended."""
        code = self.process.wait(BUILD_TIMEOUT_S)
        for thread in self._threads:
            thread.join(10)
        return code

    def report(self) -> dict[str, Any]:
        """What it printed as JSON.

        Raises:
            OneFlowError: it failed; the message has its last words.
        """
        if self.wait() != 0:
            raise OneFlowError("build", " | ".join(self._lines[-4:]), "see what it says")
        told: dict[str, Any] = json.loads(self._out.splitlines()[-1])
        return told

    def _read(self) -> None:
        assert self.process.stderr is not None
        begun: dict[str, float] = {}
        for line in self.process.stderr:
            self._lines.append(line.strip())
            name = line.partition(":")[0]
            if name in STAGES:
                self.lasts[name] = time.monotonic() - begun.setdefault(name, time.monotonic())
                self._tell("" if ENDED.match(line) else name)
        self._tell("ended")

    def _keep(self) -> None:
        assert self.process.stdout is not None
        self._out = self.process.stdout.read()

    def _tell(self, stage: str) -> None:
        with self._changed:
            self.stage = stage
            self._changed.notify_all()


class Site:
    """The stack and the sources; every corpus has a root of its own there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config = StackConfig(
            mlflow=MlflowConfig(enabled=False), ray=RayConfig(num_cpus=2, object_store_mb=200), min_free_mb=0
        )
        self.environment: dict[str, str] = {}
        self._drivers: list[Driver] = []

    def start(self) -> None:
        """The stack is up; what died is started again, its data as they were."""
        up(self._config, self.folder / "stack")
        self.environment = {**read(self.folder / "stack"), PATIENCE: "150"}

    def stop(self) -> None:
        """Nothing is left of the stack, nor of drivers."""
        for driver in self._drivers:
            driver.kill()
        down(self.folder / "stack", purge=True)

    def root(self, name: str) -> str:
        """Root of a corpus."""
        return f"s3://oneflow/{name}"

    def driver(self, name: str, **environment: str) -> Driver:
        """Builds the corpus below the root `name`."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(self._corpus(name)))
        self._drivers.append(Driver(path, {**self.environment, **environment}))
        return self._drivers[-1]

    def kill_store(self, away_s: float) -> None:
        """kill -9 of the S3 server, and after `away_s` its restart on the same data."""
        pid = status(self.folder / "stack").services["s3"].pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
        time.sleep(away_s)
        self.start()

    def await_worker(self, stage: str, longest_s: float) -> None:
        """Wait until a process works on `stage`: an encoder starts for longer than the rest of a small stage lasts."""
        end = time.monotonic() + longest_s
        while not self._workers(stage) and time.monotonic() < end:
            time.sleep(0.05)

    def kill_worker(self, stage: str, rng: random.Random) -> bool:
        """kill -9 of a process that works on `stage` (an encoder actor, in encode); False where there is none."""
        found = self._workers(stage)
        if not found:
            return False
        try:
            rng.choice(found).kill()
        except psutil.NoSuchProcess:
            return False
        return True

    @contextmanager
    def watched(self, *names: str) -> Iterator[dict[str, Any]]:
        """A watcher looks at the corpora all the while; what it saw is in the mapping afterwards."""
        seen: dict[str, Any] = {}
        urls = [f"{self.root(name)}/shards/c" for name in names]
        watcher = subprocess.Popen(
            [sys.executable, "-m", "workflows.bench.fault_watch", *urls],
            env={**os.environ, **self.environment, PATIENCE: "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield seen
        finally:
            out, _ = watcher.communicate(timeout=BUILD_TIMEOUT_S)
            seen.update(
                json.loads(out) if out else {"half": ["the watcher ended by itself"], "whole": 0, "away": 0}
            )

    def write_sources(self) -> None:
        """Tars of captioned pictures, the same each time."""
        from PIL import Image

        for number in range(TARS):
            rng = random.Random(number)
            path = self.folder / "raw" / f"{number}.tar"
            path.parent.mkdir(exist_ok=True)
            with tarfile.open(path, "w") as tar:
                for key in range(IMAGES):
                    stream = BytesIO()
                    Image.frombytes("RGB", (PIXELS, PIXELS), rng.randbytes(3 * PIXELS * PIXELS)).save(
                        stream, "PNG"
                    )
                    _add(tar, f"{key}.png", stream.getvalue())
                    _add(tar, f"{key}.txt", f"picture {key} of {number}".encode())

    def _corpus(self, name: str) -> dict[str, Any]:
        source = {
            "name": "s",
            "format": "webdataset",
            "urls": [f"{self.folder}/raw/*.tar"],
            "licence": "CC0-1.0",
        }
        encode = {"understanding": None, "image_size": PIXELS, "part_images": 3, "batch_size": 3, "actors": 1}
        return {
            "name": "c",
            "root": self.root(name),
            "sources": [{**source, "caption": "{txt}"}],
            "encode": encode,
            "shard": {"minimum": 8},
        }

    def _workers(self, stage: str) -> list[psutil.Process]:
        return [process for process in self._ray() if re.search(TASKS[stage], _title(process))]

    def _ray(self) -> list[psutil.Process]:
        pid = status(self.folder / "stack").services["ray"].pid
        return psutil.Process(pid).children(recursive=True) if pid is not None else []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, BytesIO(data))


def objects(site: Site, name: str) -> dict[str, bytes]:
    """Every object of a corpus root but the leases, by its path below the root."""
    import boto3

    values = site.environment
    client = boto3.client(
        "s3",
        endpoint_url=values["AWS_ENDPOINT_URL"],
        aws_access_key_id=values["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=values["AWS_SECRET_ACCESS_KEY"],
        region_name=values["AWS_REGION"],
    )
    found: dict[str, bytes] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="oneflow", Prefix=f"{name}/"):
        for item in page.get("Contents", []):
            path = item["Key"].removeprefix(f"{name}/")
            if not path.startswith("leases/"):
                found[path] = comparable(
                    path, client.get_object(Bucket="oneflow", Key=item["Key"])["Body"].read()
                )
    return found


def comparable(path: str, data: bytes) -> bytes:
    """The bytes; of a manifest without the commit that made it, as somebody may commit between two builds."""
    if not path.endswith("/manifest.json"):
        return data
    tree = json.loads(data)
    del tree["created_by"], tree["digest"]
    return json.dumps(tree, sort_keys=True).encode()


def seconds(begin: float) -> float:
    """Since `begin`."""
    return time.monotonic() - begin
