"""Manifests, held against the CRDs of KubeRay with unknown fields refused."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from workflows.config import load, presets
from workflows.submit.config import JobConfig
from workflows.submit.manifest import manifest, render

SCHEMAS = Path(__file__).parents[4] / "shared" / "data" / "schemas" / "kuberay"
FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayService": "ray.io_rayservices.yaml"}

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"no CRDs of KubeRay at {SCHEMAS}")


def strict(node: Any) -> Any:
    """A structural schema as JSON Schema: what the API server prunes is refused, what it defaults is not missed."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(value) for key, value in node.items() if not key.startswith("x-kubernetes-")}
    properties = node.get("properties")
    if isinstance(properties, dict):
        made["properties"] = {name: strict(value) for name, value in properties.items()}
        defaulted = {name for name, value in properties.items() if "default" in value}
        made["required"] = [name for name in node.get("required", []) if name not in defaulted]
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    return made


@cache
def validator(kind: str) -> Draft202012Validator:
    crd = yaml.load((SCHEMAS / FILES[kind]).read_text(), Loader=yaml.CSafeLoader)
    stored = next(version for version in crd["spec"]["versions"] if version["storage"])
    schema = strict(stored["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def faults(value: dict[str, Any]) -> list[str]:
    return [f"{list(error.path)}: {error.message}" for error in validator(value["kind"]).iter_errors(value)]


def rich_job() -> JobConfig:
    workers = {"replicas": 1, "max_replicas": 3, "gpus": 8, "node_selector": {"gpu": "h100"}}
    kubernetes = {"namespace": "team", "workers": workers, "env": {"A": "1"}, "secrets": ["one", "two"]}
    return JobConfig.model_validate(
        {
            "name": "rich",
            "command": ["train", "x", "--set", "a=b c"],
            "env": {"B": "2"},
            "kubernetes": kubernetes,
        }
    )


@needs_schemas
@pytest.mark.parametrize("name", presets("job"))
def test_every_preset_is_valid_under_the_crd(name: str) -> None:
    rendered = yaml.safe_load(render(load("job", name)))
    assert rendered["apiVersion"] == "ray.io/v1"
    assert faults(rendered) == []


@needs_schemas
def test_every_field_at_once_is_valid_under_the_crd() -> None:
    assert faults(manifest(rich_job())) == []


def misspell(value: dict[str, Any]) -> None:
    value["spec"]["entrypont"] = value["spec"].pop("entrypoint")


def wrong_type(value: dict[str, Any]) -> None:
    value["spec"]["backoffLimit"] = "two"


def misspell_in_container(value: dict[str, Any]) -> None:
    container = value["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["imagePullPolice"] = "Always"


def no_template(value: dict[str, Any]) -> None:
    del value["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]


@needs_schemas
@pytest.mark.parametrize("spoil", [misspell, wrong_type, misspell_in_container, no_template])
def test_a_spoilt_manifest_is_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    value = copy.deepcopy(manifest(rich_job()))
    spoil(value)
    assert faults(value)


def test_the_entrypoint_is_the_command_as_typed() -> None:
    assert manifest(rich_job())["spec"]["entrypoint"] == "oneflow train x --set 'a=b c'"


def test_the_service_runs_the_application_with_the_configs_model() -> None:
    from importlib import import_module

    job: JobConfig = load("job", "serve-shapes", ["serve.model=models:/mine@champion"])
    application = yaml.safe_load(manifest(job)["spec"]["serveConfigV2"])["applications"][0]
    assert application["args"]["model"] == "models:/mine@champion"
    module, function = application["import_path"].split(":")
    assert callable(getattr(import_module(module), function))


def test_the_service_takes_what_the_config_names() -> None:
    from workflows.serving.arguments import ServeArguments
    from workflows.serving.proxy import PATH, VARIABLE

    given = ["serve.replicas=2", "serve.max_replicas=3", "serve.queue=7", "serve.api_key_env=KEY"]
    value = manifest(load("job", "serve-shapes", given))["spec"]
    arguments = ServeArguments(**yaml.safe_load(value["serveConfigV2"])["applications"][0]["args"])
    assert (arguments.queue, arguments.follow_s, arguments.api_key_env) == (7, 60, "KEY")
    assert (
        arguments.options["autoscaling_config"] | {"min_replicas": 2, "max_replicas": 3}
        == (arguments.options["autoscaling_config"])
    )
    groups = [value["rayClusterConfig"]["headGroupSpec"], *value["rayClusterConfig"]["workerGroupSpecs"]]
    for group in groups:
        assert {"name": VARIABLE, "value": PATH} in group["template"]["spec"]["containers"][0]["env"]


def test_secrets_are_named_never_written() -> None:
    pod = manifest(rich_job())["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    sources = pod["containers"][0]["envFrom"]
    assert sources[1:] == [{"secretRef": {"name": "one"}}, {"secretRef": {"name": "two"}}]
    assert not {entry["name"] for entry in pod["containers"][0]["env"]} & {"AWS_SECRET_ACCESS_KEY"}


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "db_password"])
@pytest.mark.parametrize("where", ["env", "kubernetes.env"])
def test_a_literal_secret_is_refused(name: str, where: str) -> None:
    with pytest.raises(Exception, match="looks like a secret") as caught:
        load("job", "train-shapes", [f"{where}.{name}=hidden-value"])
    assert "hidden-value" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    ["command=[]", "name=Upper", "kubernetes.workers.max_replicas=1", "kubernetes.head.memory=lots"],
)
def test_a_job_that_cannot_be_is_refused(override: str) -> None:
    with pytest.raises(Exception, match="config train-shapes"):
        load("job", "train-shapes", [override])
