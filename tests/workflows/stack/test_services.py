"""MLflow and Ray of the stack, as their clients meet them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.conftest import RunningStack
from workflows import storage
from workflows.stack import StackConfig, status, up
from workflows.stack.config import RayConfig
from workflows.stack.process import members
from workflows.stack.state import StateDirectory

ONEFLOW = Path(sys.executable).with_name("oneflow")

ON_RAY = """
import json, os, ray
ray.init(log_to_driver=False)

@ray.remote
def see():
    names = ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
    return {name: os.environ.get(name) for name in names}

print(json.dumps({"worker": ray.get(see.remote()), "cpus": ray.cluster_resources()["CPU"]}))
"""


def test_artifacts_pass_through_the_server_to_the_store_without_keys(
    stack: RunningStack, tmp_path: Path
) -> None:
    code = """
import sys, mlflow
mlflow.set_experiment("stack")
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.5, step=3)
    mlflow.log_text("kept", "note.txt")
client = mlflow.MlflowClient()
client.create_registered_model("stack-test")
client.create_model_version("stack-test", source=f"runs:/{run.info.run_id}/", run_id=run.info.run_id)
client.set_registered_model_alias("stack-test", "candidate", 1)
assert client.get_model_version_by_alias("stack-test", "candidate").run_id == run.info.run_id
assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
assert mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt") == "kept"
print(run.info.run_id)
"""
    tracking = {"MLFLOW_TRACKING_URI": stack.env["MLFLOW_TRACKING_URI"], "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=tracking, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split()[-1]
    notes = [url for url in storage.list_urls("s3://mlflow/**/note.txt") if run_id in url]
    assert len(notes) == 1
    assert storage.read_bytes(notes[0]) == b"kept"


def test_ray_joins_a_running_stack_and_its_workers_reach_the_rest(ray_stack: RunningStack) -> None:
    now = status(ray_stack.state_dir)
    assert now.running
    assert now.ray_address == ray_stack.env["RAY_ADDRESS"]
    assert now.serve_url is None
    done = subprocess.run([sys.executable, "-c", ON_RAY], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["cpus"] == 2
    for name, value in seen["worker"].items():
        assert value == ray_stack.env[name]


def test_every_listener_of_the_stack_is_on_loopback(ray_stack: RunningStack) -> None:
    directory = StateDirectory(ray_stack.state_dir)
    found = 0
    for name in ("s3", "mlflow", "ray"):
        for process in members(f"{directory.id}:{name}"):
            try:
                connections = process.net_connections("inet")
            except psutil.NoSuchProcess:  # Ray's idle workers come and go
                continue
            for connection in connections:
                if connection.status == psutil.CONN_LISTEN:
                    found += 1
                    assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1"), (name, connection)
    assert found > 10


def test_nobody_without_the_token_runs_code(ray_stack: RunningStack) -> None:
    from workflows.stack.services import http_get

    jobs = f"{status(ray_stack.state_dir).ray_dashboard}/api/jobs/"
    assert http_get(jobs) is None
    assert http_get(jobs, "wrong") is None
    assert http_get(jobs, ray_stack.env["RAY_AUTH_TOKEN"], timeout_s=60) is not None


def submitted(stack: RunningStack, tmp_path: Path, job: str, **env: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "job.yaml").write_text(job)
    address = status(stack.state_dir).ray_dashboard
    return subprocess.run(
        [ONEFLOW, "submit", tmp_path / "job.yaml", "--address", str(address), "--json"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_a_submitted_stage_runs_and_its_log_comes_back(ray_stack: RunningStack, tmp_path: Path) -> None:
    url = ray_stack.url("submitted")
    command = ["corpus", "synth", "--out", url, "--documents", "3", "--seed", "1"]
    done = submitted(ray_stack, tmp_path, f"name: synth\ncommand: {json.dumps(command)}\n")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["status"], report["exit_code"]) == ("SUCCEEDED", 0)
    assert f"3 captions at {url}" in done.stdout
    assert any(name.endswith(".tar") for name in storage.list_urls(url))


def test_the_exit_code_follows_the_job(ray_stack: RunningStack, tmp_path: Path) -> None:
    done = submitted(ray_stack, tmp_path, "name: bad\ncommand: [config, show, stack/lokal]\n")
    assert done.returncode == 2
    assert 'did you mean "local"' in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "FAILED"


def test_a_wrong_token_is_told(ray_stack: RunningStack, tmp_path: Path) -> None:
    done = submitted(ray_stack, tmp_path, "name: any\ncommand: [--version]\n", RAY_AUTH_TOKEN="f" * 64)
    assert done.returncode == 1
    assert "RAY_AUTH_TOKEN" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_killed_ray_head_leaves_nothing_and_comes_back(ray_stack: RunningStack) -> None:
    before = status(ray_stack.state_dir)
    head = psutil.Process(before.services["ray"].pid)
    head.kill()
    head.wait(10)
    assert status(ray_stack.state_dir).services["ray"].state == "dead"
    old = {process.pid for process in members(f"{StateDirectory(ray_stack.state_dir).id}:ray")}
    after = up(
        StackConfig(ray=RayConfig(num_cpus=2, object_store_mb=300), min_free_mb=0), ray_stack.state_dir
    )
    assert after.running
    assert after.ray_address == before.ray_address
    assert after.services["s3"] == before.services["s3"]
    assert after.services["mlflow"] == before.services["mlflow"]
    assert not any(psutil.pid_exists(pid) for pid in old)
