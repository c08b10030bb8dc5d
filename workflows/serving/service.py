"""Starting and stopping the Serve application on the Ray at RAY_ADDRESS, or on one of its own."""

from __future__ import annotations

import logging
import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oneflow_core.model_source import ModelSourceError, local_directory
from workflows.corpus.cluster import cluster
from workflows.errors import OneFlowError, Refused, UsageError
from workflows.serving.access import digest_of
from workflows.serving.arguments import ServeArguments
from workflows.serving.proxy import PATH, VARIABLE

APPLICATION = "oneflow"
LOOPBACK = "127.0.0.1"
NICENESS = "RAY_worker_niceness"


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens; port 0 takes a free one."""

    host: str = LOOPBACK
    port: int = 0


@contextmanager
def serving(model: str, *, address: Address | None = None, **options: Any) -> Iterator[str]:
    """The model's server for as long as the context is open; gives its URL.

    `options` are the fields of `ServeArguments`. Serve is shut down at the end, and Ray too where it was started here.

    Raises:
        OneFlowError: the port is taken, the model cannot be loaded, or the cluster lacks the resources.
        UsageError: an option that does not hold, or an API key that is not there.
        Refused: Serve runs on that cluster already.
    """
    arguments = _arguments(model, options)
    key_digest = digest_of(arguments.api_key_env)
    os.environ.setdefault(VARIABLE, PATH)
    # A Ray of its own would run replicas after all else on this machine (nice 15), clients included.
    os.environ.setdefault(NICENESS, "0")
    with cluster({VARIABLE: PATH}):
        from ray import serve

        _refuse_a_second()
        _demand(arguments)
        url = _start(arguments, key_digest, address or Address())
        try:
            yield url
        finally:
            serve.shutdown()


def _arguments(model: str, options: dict[str, Any]) -> ServeArguments:
    here = str(Path(model).resolve()) if Path(model).is_dir() else model
    if ":/" not in model:
        _demand_directory(model)
    try:
        return ServeArguments(model=here, **options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = ".".join(map(str, first["loc"])) or "oneflow serve"
        cause = str(first["msg"]).removeprefix("Value error, ")
        raise UsageError(what, cause, 'see "oneflow serve --help"') from None


def _demand_directory(model: str) -> None:
    """A replica would find out as well, but only after Ray and Serve have started."""
    try:
        with local_directory(model):
            pass
    except ModelSourceError as error:
        cause, _, mend = str(error).partition("; ")
        raise OneFlowError(f"serving {model}", cause, mend) from None


def _refuse_a_second() -> None:
    from ray.util import list_named_actors

    if any(a["name"] == "SERVE_CONTROLLER_ACTOR" for a in list_named_actors(all_namespaces=True)):
        raise Refused(
            "Ray Serve",
            "it runs on this cluster already, with its own address",
            'end the other "oneflow serve" with Ctrl-C; if none runs any more, "oneflow stack down" ends it all',
        )


def _demand(arguments: ServeArguments) -> None:
    """Serve waits without end for what a cluster does not have."""
    import ray

    held = ray.cluster_resources()
    for name, each in (("CPU", arguments.cpus), ("GPU", arguments.gpus)):
        wanted = arguments.replicas * each
        if wanted > held.get(name, 0):
            raise OneFlowError(
                f"the Ray cluster's {held.get(name, 0):g} {name}s",
                f"the replicas ask for {wanted:g}",
                "ask for fewer with --replicas, --cpus and --gpus, or add nodes",
            )


def _start(arguments: ServeArguments, key_digest: str, address: Address) -> str:
    from ray import serve

    from workflows.serving.app import bind

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    port = free_port(address.host) if address.port == 0 else _unused(address.host, address.port)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": address.host, "port": port})
        serve.run(bind(arguments, key_digest), name=APPLICATION, route_prefix="/")
    except (RuntimeError, ModelSourceError) as error:
        cause = _cause(error)
        serve.shutdown()
        raise OneFlowError(
            f"serving {arguments.model}", cause, "name a model that loads, and enough cores"
        ) from error
    url = f"http://{LOOPBACK if address.host in ('0.0.0.0', '::') else address.host}:{port}"
    _await(f"{url}/healthz")
    return url


def _cause(error: Exception) -> str:
    """The last line that says something: Serve puts the replica's whole traceback into its message."""
    from ray import serve

    status = serve.status().applications.get(APPLICATION)
    message = "\n".join([d.message for d in status.deployments.values()] if status else []) or str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    said = [line for line in lines if "Error: " in line]
    return (said or lines or [type(error).__name__])[-1]


def _await(url: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310
                if reply.status == 200:
                    return
        except OSError as error:
            if time.monotonic() > deadline:
                raise OneFlowError(
                    url, str(error), "see the logs of Ray Serve in Ray's session directory"
                ) from error
        time.sleep(0.1)


def free_port(host: str = LOOPBACK) -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _unused(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OneFlowError(
                f"{host}:{port}", error.strerror or str(error), "choose another --port"
            ) from error
    return port
