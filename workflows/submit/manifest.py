"""KubeRay manifests of a job: a RayJob for a command, a RayService for a served model (API ray.io/v1)."""

import shlex
from importlib.metadata import version
from typing import Any

import yaml

from workflows.serving.proxy import PATH, VARIABLE
from workflows.submit.config import JobConfig, Kubernetes, Node, Serve, Workers

APPLICATION = "workflows.serving.app:build"
Manifest = dict[str, Any]


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, and every mapping written out."""

    def ignore_aliases(self, data: Any) -> bool:
        """Manifests are read by people: no anchors."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def render(job: JobConfig) -> str:
    """The manifest as YAML; the same config gives the same text."""
    body: str = yaml.dump(manifest(job), Dumper=_Dumper, sort_keys=False, width=110)
    return f"# oneflow submit {job.name} --render\n{body}"


def manifest(job: JobConfig) -> Manifest:
    """The RayJob or RayService of `job`."""
    spec = _service_spec(job, job.serve) if job.serve else _job_spec(job)
    metadata: Manifest = {"name": job.name, "labels": _labels(job)}
    if job.kubernetes.namespace:
        metadata["namespace"] = job.kubernetes.namespace
    kind = "RayService" if job.serve else "RayJob"
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _job_spec(job: JobConfig) -> Manifest:
    spec: Manifest = {
        "entrypoint": shlex.join(["oneflow", *job.command]),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.kubernetes.keep_s,
        "backoffLimit": job.retries,
    }
    if job.timeout_s is not None:
        spec["activeDeadlineSeconds"] = job.timeout_s
    if job.env:
        spec["runtimeEnvYAML"] = yaml.safe_dump({"env_vars": job.env}, sort_keys=True)
    return spec | {"rayClusterSpec": _cluster(job)}


def _service_spec(job: JobConfig, serve: Serve) -> Manifest:
    application: Manifest = {
        "name": job.name,
        "import_path": APPLICATION,
        "route_prefix": "/",
        "args": serve.model_dump(mode="json"),
    }
    if job.env:
        application["runtime_env"] = {"env_vars": job.env}
    options = {"host": "0.0.0.0", "port": 8000}
    text = yaml.safe_dump({"http_options": options, "applications": [application]}, sort_keys=False)
    return {"serveConfigV2": text, "rayClusterConfig": _cluster(job)}


def _cluster(job: JobConfig) -> Manifest:
    kubernetes = job.kubernetes
    workers = kubernetes.workers
    most = workers.max_replicas if workers.max_replicas is not None else workers.replicas
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": most > workers.replicas,
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0"},
            "template": _pod(job, kubernetes.head, "ray-head", _HEAD_PORTS),
        },
        "workerGroupSpecs": [_workers(job, workers, most)],
    }


def _workers(job: JobConfig, workers: Workers, most: int) -> Manifest:
    return {
        "groupName": "workers",
        "replicas": workers.replicas,
        "minReplicas": min(workers.replicas, most),
        "maxReplicas": most,
        "rayStartParams": {},
        "template": _pod(job, workers, "ray-worker", []),
    }


def _pod(job: JobConfig, node: Node, name: str, ports: list[Manifest]) -> Manifest:
    amounts: Manifest = {"cpu": str(node.cpus), "memory": node.memory}
    if node.gpus:
        amounts["nvidia.com/gpu"] = str(node.gpus)
    container: Manifest = {
        "name": name,
        "image": job.kubernetes.image,
        "env": _environment(job),
        "envFrom": _environment_from(job.kubernetes),
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    if ports:
        container["ports"] = ports
    spec: Manifest = {
        "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000},
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": node.shared_memory}}
        ],
    }
    if node.node_selector:
        spec["nodeSelector"] = dict(node.node_selector)
    return {"metadata": {"labels": _labels(job)}, "spec": spec}


def _environment(job: JobConfig) -> list[Manifest]:
    values = {VARIABLE: PATH} if job.serve else {}
    values |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", **job.kubernetes.env}
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def _environment_from(kubernetes: Kubernetes) -> list[Manifest]:
    maps = [{"configMapRef": {"name": name}} for name in kubernetes.config_maps]
    return [*maps, *({"secretRef": {"name": name}} for name in kubernetes.secrets)]


def _labels(job: JobConfig) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "oneflow", "app.kubernetes.io/name": job.name}


_HEAD_PORTS: list[Manifest] = [
    {"name": name, "containerPort": port}
    for name, port in (("gcs-server", 6379), ("dashboard", 8265), ("client", 10001), ("serve", 8000))
]
