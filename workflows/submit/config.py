"""What a job is: one command of `oneflow` (or one served model), and the cluster it wants."""

import re
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from workflows.config import Config

_LOOKS_SECRET = re.compile(
    r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE", re.IGNORECASE
)

DnsName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$", max_length=47)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]


def _plain(env: dict[str, str]) -> dict[str, str]:
    for name in env:
        if _LOOKS_SECRET.search(name):
            raise ValueError(
                f"{name} looks like a secret: keep it in a Secret, and name that under kubernetes.secrets"
            )
    return env


class Node(Config):
    """One pod of Ray."""

    cpus: int = Field(default=4, ge=1)
    """CPUs of the pod, all of them Ray's."""
    memory: Quantity = "16Gi"
    """Memory of the pod; a part of it is shared memory for the object store."""
    shared_memory: Quantity = "4Gi"
    """Size of /dev/shm; the object store of Ray lies there."""
    gpus: int = Field(default=0, ge=0)
    """NVIDIA GPUs of the pod."""
    node_selector: dict[str, str] = {}
    """Labels that the Kubernetes node must have."""


class Workers(Node):
    """A group of equal worker pods."""

    replicas: int = Field(default=2, ge=0)
    """Pods at the start."""
    max_replicas: int | None = Field(default=None, ge=0)
    """Pods at most; above `replicas` the autoscaler of Ray is on."""

    @model_validator(mode="after")
    def _most_is_not_less(self) -> "Workers":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is less than replicas")
        return self


class Kubernetes(Config):
    """The RayCluster that KubeRay makes for the job."""

    image: str = f"oneflow:{version('oneflow')}"
    """Image made of infra/docker/Dockerfile."""
    namespace: DnsName | None = None
    """Namespace written into the manifest; what kubectl or kustomize says where not given."""
    head: Node = Node()
    """The head; the driver runs here."""
    workers: Workers = Workers()
    """The workers."""
    config_maps: tuple[DnsName, ...] = ("oneflow",)
    """ConfigMaps whose entries become the environment of every pod: endpoints, nothing secret."""
    secrets: tuple[DnsName, ...] = ("oneflow-s3",)
    """Secrets whose entries become the environment of every pod: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY."""
    env: dict[str, str] = {}
    """More environment of every pod; what looks like a secret is refused."""
    keep_s: int = Field(default=600, ge=0)
    """Seconds that the cluster of an ended job stays, for a look at its logs."""

    _env = field_validator("env")(_plain)


class Serve(Config):
    """A model behind Ray Serve."""

    model: str
    """A directory, an fsspec URL, or `models:/name@alias`."""
    replicas: int = Field(default=1, ge=1)
    """Copies of the model."""
    cpus: float = Field(default=1, gt=0)
    """CPUs of a copy."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a copy; with any, the model is there."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the network; auto: bfloat16 on a GPU, float32 on a CPU."""
    batch: int = Field(default=16, ge=1)
    """Documents that a copy makes at once."""
    queue: int = Field(default=64, ge=0)
    """Documents that wait at a copy; more are refused with 429."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Copies at most; above `replicas` their number follows the load, where the cluster has room."""
    api_key_env: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Environment variable of the pods that holds the API key, by a Secret under `kubernetes.secrets`; none is open."""
    follow_s: float = Field(default=0, ge=0)
    """Seconds between looks at where `models:/name@alias` points; 0 stays with the version of the start."""
    body_s: float = Field(default=30, gt=0)
    """Seconds that a request's body may take to arrive."""


class JobConfig(Config):
    """One stage of the line on a cluster: either `command` or `serve`."""

    name: DnsName
    """Name of the job, its cluster and its pods."""
    command: tuple[str, ...] = ()
    """Arguments of `oneflow`, as one would type them."""
    serve: Serve | None = None
    """A service instead of a command."""
    env: dict[str, str] = {}
    """Environment of the job wherever it runs; what looks like a secret is refused."""
    timeout_s: int | None = Field(default=None, ge=1)
    """Seconds after which Kubernetes ends the job."""
    retries: int = Field(default=2, ge=0)
    """Fresh clusters that KubeRay tries after a failure; every stage goes on where it was."""
    kubernetes: Kubernetes = Kubernetes()
    """The cluster, for --render."""

    _env = field_validator("env")(_plain)

    @model_validator(mode="before")
    @classmethod
    def _one_of(cls, values: Any) -> Any:
        if isinstance(values, dict) and bool(values.get("command")) == bool(values.get("serve")):
            raise ValueError("give either command or serve")
        return values
