"""Start, look at and stop the stack. Starting twice starts nothing anew; what died is started again."""

import hashlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from workflows.errors import OneFlowError
from workflows.stack import environment, ports
from workflows.stack.config import StackConfig
from workflows.stack.process import Launch, Record, spawn, stop, sweep, tail
from workflows.stack.services import Context, Ray, Service, http_get, services
from workflows.stack.state import State, StateDirectory

POLL_S = 0.2
RAY_ATTEMPTS = 3
"""Ray gives its node 30 s, set nowhere, to come up, and gives up when a busy machine takes longer."""
RAY_GAVE_UP = b"node timed out during startup"
"""Then it says so, and may hang instead of ending."""
_ALL = services(StackConfig())


class ServiceStatus(BaseModel):
    """One service as it is now."""

    state: Literal["running", "starting", "dead", "stopped"]
    """`dead`: it was started and ended by itself; `starting`: it runs and does not answer (yet)."""
    pid: int | None
    log: str


class Status(BaseModel):
    """The stack as it is now; an URL is null while its service does not run."""

    state_dir: str
    running: bool
    mlflow_url: str | None
    s3_endpoint: str | None
    ray_dashboard: str | None
    ray_address: str | None
    serve_url: str | None
    buckets: list[str]
    services: dict[str, ServiceStatus]


def up(
    config: StackConfig, state_dir: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Status:
    """Bring the services up, each ready when this returns; those that run already are left alone.

    A service that ended is started again on its old port; one whose config changed is restarted. When one does not
    come up, those that this call started are stopped, and a OneFlowError names the log.
    """
    directory = StateDirectory(state_dir)
    directory.prepare(config.min_free_mb)
    with directory.lock():
        state = directory.load()
        wanted = services(config)
        _stop_unwanted(directory, state, wanted)
        context = _context(config, directory, state, wanted)
        state.buckets = list(config.s3.buckets)
        begun = _start(context, state, wanted, say)
        try:
            _wait(context, state, wanted, begun, say)
        except BaseException:
            _stop_all(directory, state, begun)
            raise
        environment.write(directory, context)
    return status(state_dir)


def down(state_dir: Path | None = None, *, purge: bool = False) -> list[str]:
    """Stop all services and wait until no process of theirs is left; names of those that ran.

    Data and logs stay, unless `purge`: then the state directory goes too.
    """
    directory = StateDirectory(state_dir)
    if not directory.path.exists():
        return []
    with directory.lock():
        state = directory.load()
        ran = [name for name, record in state.services.items() if record.process()]
        environment.remove(directory)
        _stop_all(directory, state, list(state.services))
        for service in _ALL:
            sweep(_marker(directory, service.name))
        _remove_sockets(directory, state)
    if purge:
        shutil.rmtree(directory.path)
        shutil.rmtree(directory.run_directory, ignore_errors=True)
    return ran


def status(state_dir: Path | None = None) -> Status:
    """What runs now; never an error, whatever is missing."""
    directory = StateDirectory(state_dir)
    state = directory.load()
    seen = {service.name: _status_of(service, directory, state) for service in _ALL}

    def url(service: str, port: str, scheme: str = "http://") -> str | None:
        there = seen[service].state in ("running", "starting")
        return f"{scheme}{ports.LOOPBACK}:{state.ports[port]}" if there else None

    dashboard = url("ray", "ray_dashboard")
    return Status(
        state_dir=str(directory.path),
        running=bool(state.services) and all(seen[name].state == "running" for name in state.services),
        mlflow_url=url("mlflow", "mlflow"),
        s3_endpoint=url("s3", "s3"),
        ray_dashboard=dashboard,
        ray_address=url("ray", "ray", scheme=""),
        serve_url=_serve_url(dashboard, directory) if dashboard else None,
        buckets=state.buckets,
        services=seen,
    )


def _context(config: StackConfig, directory: StateDirectory, state: State, wanted: list[Service]) -> Context:
    """Ports that live services hold stay; the others are those of last time where still free."""
    for service in wanted:
        fixed = service.fixed_ports(config)
        record = state.services.get(service.name)
        alive = record is not None and record.process() is not None
        moved = any(port and port != state.ports.get(name) for name, port in fixed.items())
        if alive and not moved:
            continue
        if record is not None:
            stop(record)
        for name in service.port_names:
            state.ports[name] = _port(state, service, name, fixed.get(name))
    return Context(config, directory, state.ports, directory.credentials())


def _port(state: State, service: Service, name: str, fixed: int | None) -> int:
    if fixed is not None:
        return ports.demand(fixed, service.name, paired=service.name == "s3")
    others = [port for other, port in state.ports.items() if other != name]
    return ports.choose(state.ports.get(name), others)


def _start(context: Context, state: State, wanted: list[Service], say: Callable[[str], None]) -> list[str]:
    """Launch what does not run as it should; names of what was launched."""
    begun = []
    for service in wanted:
        launch = service.launch(context)
        fingerprint = _fingerprint(launch)
        record = state.services.get(service.name)
        if record and record.process() and record.fingerprint == fingerprint:
            continue
        marker = _marker(context.directory, service.name)
        stop(record) if record else sweep(marker)
        if isinstance(service, Ray):
            shutil.rmtree(context.directory.run_directory / "ray", ignore_errors=True)
        state.services[service.name] = _spawn(context, service, launch, marker, fingerprint)
        begun.append(service.name)
        context.directory.save(state)
        say(f"{service.name}: starting")
    return begun


def _spawn(context: Context, service: Service, launch: Launch, marker: str, fingerprint: str) -> Record:
    directory = context.directory
    return spawn(launch, marker, fingerprint, directory.log(service.name), directory.path)


def _wait(
    context: Context, state: State, wanted: list[Service], begun: list[str], say: Callable[[str], None]
) -> None:
    started = time.monotonic()

    def wait_for(service: Service) -> None:
        attempts = RAY_ATTEMPTS if isinstance(service, Ray) and service.name in begun else 1
        _wait_one(context, service, state, attempts)
        if service.name in begun:
            say(f"{service.name}: ready in {time.monotonic() - started:.1f} s")

    with ThreadPoolExecutor(len(wanted)) as pool:
        list(pool.map(wait_for, wanted))


def _wait_one(context: Context, service: Service, state: State, attempts: int) -> None:
    log = context.directory.log(service.name)
    deadline = time.monotonic() + context.config.ready_timeout_s
    seen = log.stat().st_size if attempts > 1 else 0
    while not service.ready(context):
        record = state.services[service.name]
        gave_up = attempts > 1 and RAY_GAVE_UP in log.read_bytes()[seen:]
        if gave_up or record.process() is None:
            attempts -= 1
            if not attempts:
                raise OneFlowError(
                    f"stack: {service.name}", f"it ended while starting: {tail(log)}", f"see {log}"
                )
            stop(record)
            seen = log.stat().st_size
            _start(context, state, [service], lambda line: None)
        if time.monotonic() > deadline:
            raise OneFlowError(
                f"stack: {service.name}",
                f"not ready after {context.config.ready_timeout_s:.0f} s: {tail(log)}",
                f"see {log}, or wait longer with --set ready_timeout_s=SECONDS",
            )
        time.sleep(POLL_S)


def _stop_unwanted(directory: StateDirectory, state: State, wanted: list[Service]) -> None:
    names = {service.name for service in wanted}
    _stop_all(directory, state, [name for name in state.services if name not in names])


def _stop_all(directory: StateDirectory, state: State, names: list[str]) -> None:
    records = [state.services.pop(name) for name in names]
    if records:
        with ThreadPoolExecutor(len(records)) as pool:
            list(pool.map(stop, records))
    directory.save(state)


def _remove_sockets(directory: StateDirectory, state: State) -> None:
    """SeaweedFS leaves its sockets in the temporary directory, named by port."""
    numbers = {number + offset for number in state.ports.values() for offset in (0, ports.GRPC_OFFSET)}
    found = [*directory.run_directory.glob("*.sock"), *Path("/tmp").glob("seaweedfs-*.sock")]
    for socket in found:
        if socket.parent == directory.run_directory or socket.stem.rpartition("-")[2] in map(str, numbers):
            socket.unlink(missing_ok=True)


def _status_of(service: Service, directory: StateDirectory, state: State) -> ServiceStatus:
    record = state.services.get(service.name)
    log = str(directory.log(service.name))
    if record is None:
        return ServiceStatus(state="stopped", pid=None, log=log)
    if record.process() is None:
        return ServiceStatus(state="dead", pid=None, log=log)
    answers = ports.answers(state.ports[service.port_names[0]])
    return ServiceStatus(state="running" if answers else "starting", pid=record.pid, log=log)


def _serve_url(dashboard: str, directory: StateDirectory) -> str | None:
    """URL of the first running Serve application, as the dashboard knows it."""
    found = http_get(f"{dashboard}/api/serve/applications/", directory.credentials().ray_token)
    if not isinstance(found, dict):
        return None
    options = found.get("http_options") or {}
    for application in found.get("applications", {}).values():
        if application.get("status") == "RUNNING" and application.get("route_prefix"):
            base = f"http://{options.get('host')}:{options.get('port')}"
            return f"{base}{application['route_prefix']}".rstrip("/")
    return None


def _marker(directory: StateDirectory, service: str) -> str:
    return f"{directory.id}:{service}"


def _fingerprint(launch: Launch) -> str:
    return hashlib.sha256(launch.model_dump_json().encode()).hexdigest()
