"""The stack's life with the real S3 server; MLflow and Ray stand in test_services.py."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workflows import storage
from workflows.errors import OneFlowError
from workflows.stack import StackConfig, adopt, connect, down, status, up
from workflows.stack.config import MlflowConfig, RayConfig, S3Config
from workflows.stack.environment import FILE, read
from workflows.stack.process import Record, members
from workflows.stack.state import StateDirectory

ONEFLOW = Path(sys.executable).with_name("oneflow")


def config(**s3: object) -> StackConfig:
    return StackConfig(
        s3=S3Config.model_validate(s3),
        mlflow=MlflowConfig(enabled=False),
        ray=RayConfig(enabled=False),
        min_free_mb=0,
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import s3fs

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    yield tmp_path / "state"
    down(tmp_path / "state", purge=True)
    s3fs.S3FileSystem.clear_instance_cache()


def use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name, value in read(home).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_up_twice_kill_up_down(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = up(config(), home)
    assert first.running
    assert first.services["mlflow"].state == first.services["ray"].state == "stopped"
    use(home, monkeypatch)
    storage.put_atomic("s3://oneflow/kept", b"kept")

    assert up(config(), home) == first, "a second up starts nothing"

    pid = first.services["s3"].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=60)
    dead = status(home)
    assert (dead.running, dead.services["s3"].state, dead.s3_endpoint) == (False, "dead", None)

    healed = up(config(), home)
    assert healed.running
    assert healed.services["s3"].pid != pid
    assert healed.s3_endpoint == first.s3_endpoint, "clients find it where it was"
    assert storage.read_bytes("s3://oneflow/kept") == b"kept"

    assert down(home) == ["s3"]
    assert down(home) == []
    assert members(f"{StateDirectory(home).id}:s3") == []
    assert list(Path("/tmp").glob(f"seaweedfs-*{str(first.s3_endpoint).rpartition(':')[2]}.sock")) == []
    assert status(home).services["s3"].state == "stopped"


def test_a_write_waits_for_a_server_that_comes_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = up(config(), home)
    use(home, monkeypatch)
    storage.put_atomic("s3://oneflow/before", b"1")
    server = psutil.Process(begun.services["s3"].pid)
    server.kill()
    server.wait(300)
    healer = threading.Thread(target=up, args=(config(), home))
    healer.start()
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        try:
            storage.put_atomic("s3://oneflow/after", b"2")
            break
        except OneFlowError:
            continue
    healer.join()
    assert storage.read_bytes("s3://oneflow/before") == b"1"
    assert storage.read_bytes("s3://oneflow/after") == b"2"


def test_listens_on_loopback_only_and_keeps_secrets_private(home: Path) -> None:
    begun = up(config(), home)
    addresses = {
        connection.laddr.ip
        for process in members(f"{StateDirectory(home).id}:s3")
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}

    for name in ("credentials.json", FILE, "stack.json"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    secret = json.loads((home / "credentials.json").read_text())["secret_key"]
    assert secret not in Path(begun.services["s3"].log).read_text(errors="replace")
    assert secret not in (home / "stack.json").read_text()
    assert secret not in " ".join(psutil.Process(begun.services["s3"].pid).cmdline())


def test_stale_record_of_a_reused_pid_is_not_touched(home: Path) -> None:
    directory = StateDirectory(home)
    directory.prepare(0)
    state = directory.load()
    me = psutil.Process()
    state.services["s3"] = Record(pid=me.pid, create_time=me.create_time() - 50, marker="x", fingerprint="x")
    directory.save(state)
    assert status(home).services["s3"].state == "dead"
    begun = up(config(), home)
    assert begun.running
    assert begun.services["s3"].pid != me.pid


def test_port_in_use_is_told_and_nothing_is_left(home: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        if port > 55535:
            pytest.skip("the kernel gave a port without a pair")
        with pytest.raises(OneFlowError, match=f"port {port}: in use by .*pid {os.getpid()}"):
            up(config(port=port), home)
    assert members(f"{StateDirectory(home).id}:s3") == []
    assert not (home / FILE).exists()


def test_a_server_that_cannot_start_is_told_with_its_log(home: Path) -> None:
    directory = StateDirectory(home)
    directory.prepare(0)
    (home / "s3" / "filerldb2").write_text("no database")
    with pytest.raises(OneFlowError) as caught:
        up(config(), home)
    assert "s3" in caught.value.what
    assert "ended while starting" in caught.value.cause
    assert str(home / "logs" / "s3.log") in caught.value.mend
    assert members(f"{directory.id}:s3") == []
    assert not (home / FILE).exists()


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null/below"])
def test_missing_disk_is_told(place: str) -> None:
    with pytest.raises(OneFlowError) as caught:
        up(config(), Path(place))
    assert place in caught.value.what
    assert "--state-dir" in caught.value.mend


def test_full_disk_is_told(home: Path) -> None:
    with pytest.raises(OneFlowError, match="MiB are free"):
        up(StackConfig(min_free_mb=1 << 40), home)


def test_without_a_stack(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(home).running is False
    assert down(home) == []
    with pytest.raises(OneFlowError, match="oneflow stack up"):
        connect(home)
    adopt(home)
    assert "AWS_ENDPOINT_URL" not in os.environ


def test_a_store_that_the_environment_names_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = StateDirectory(home)
    directory.prepare(0)
    values = {
        "AWS_ENDPOINT_URL": "http://ours",
        "AWS_ACCESS_KEY_ID": "ours",
        "MLFLOW_TRACKING_URI": "http://ours",
    }
    directory.write_private(FILE, json.dumps(values))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "theirs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://theirs")
    adopt(home)
    assert "AWS_ENDPOINT_URL" not in os.environ
    assert os.environ["AWS_ACCESS_KEY_ID"] == "theirs"
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://theirs"


def test_status_as_json_is_the_last_line(home: Path) -> None:
    done = subprocess.run(
        [ONEFLOW, "stack", "status", "--json", "--state-dir", home],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = json.loads(done.stdout.splitlines()[-1])
    assert {"mlflow_url", "s3_endpoint", "ray_dashboard", "ray_address", "serve_url"} <= set(shown)
    assert shown["serve_url"] is None
    assert shown["services"]["s3"]["log"] == str(home / "logs" / "s3.log")
