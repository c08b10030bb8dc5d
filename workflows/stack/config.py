"""What the embedded stack may be told; every default runs on one machine, without an account."""

from pydantic import Field

from workflows.config import Config

Port = Field(default=None, ge=1024, le=65535)


class S3Config(Config):
    """The S3 server (SeaweedFS)."""

    port: int | None = Field(default=None, ge=1024, le=55535)
    """Port of the S3 API on loopback; a free one where not given. Port + 10000 is taken too (gRPC)."""
    buckets: tuple[str, ...] = ("oneflow", "mlflow")
    """Buckets that are there after `up`; the last is where MLflow keeps artifacts."""
    volume_size_mb: int = Field(default=256, ge=32)
    """Size of one volume file; small ones keep many buckets cheap."""


class MlflowConfig(Config):
    """The tracking server with the model registry."""

    enabled: bool = True
    """Whether `up` starts one; without it set MLFLOW_TRACKING_URI to yours."""
    port: int | None = Port
    """Port on loopback; a free one where not given."""
    backend_store_uri: str | None = None
    """SQLAlchemy URI of the database; SQLite in the state directory where not given."""


class RayConfig(Config):
    """The Ray head of this machine."""

    enabled: bool = True
    """Whether `up` starts Ray; without it jobs start a Ray of their own."""
    port: int | None = Port
    """Port of the head on loopback; a free one where not given."""
    dashboard_port: int | None = Port
    """Port of the dashboard and job server on loopback; a free one where not given."""
    num_cpus: int | None = Field(default=None, ge=1)
    """CPUs that Ray hands out; the machine's where not given."""
    num_gpus: int | None = Field(default=None, ge=0)
    """GPUs that Ray hands out; those that Ray finds where not given."""
    object_store_mb: int = Field(default=1024, ge=80)
    """Memory of the object store in MiB."""
    train_poll_s: float = Field(default=0.2, gt=0)
    """Seconds between polls of Ray Train's controller: what was reported before a poll survives a lost worker."""


class StackConfig(Config):
    """The embedded services: S3, MLflow and Ray, on loopback."""

    s3: S3Config = S3Config()
    """The object store."""
    mlflow: MlflowConfig = MlflowConfig()
    """The tracking server."""
    ray: RayConfig = RayConfig()
    """The cluster."""
    ready_timeout_s: float = Field(default=300.0, gt=0)
    """How long `up` waits for a service before it gives up."""
    min_free_mb: int = Field(default=1024, ge=0)
    """Free disk in MiB below which `up` refuses to start."""
