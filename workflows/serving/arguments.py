"""How the Serve application is set up: the options of `oneflow serve`, and the `args` of a Serve config."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workflows.serving.engine import Room
from workflows.serving.wire import Limits

SLACK = 256
"""Requests that a replica holds beyond its batch and queue: bodies on their way, refusals, health checks."""
DRAIN_S = 120.0
"""Seconds that a replica that is to stop has for what it began."""


class ServeArguments(BaseModel):
    """Arguments of the application; strings are enough, so that a Serve config can give them."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """A directory, an fsspec URL, `models:/name@alias`, or `embedded`."""
    replicas: int = Field(default=1, ge=1)
    """Copies of the model."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Copies at most; above `replicas` their number follows the requests that are under way."""
    cpus: float = Field(default=1, gt=0)
    """Cores of a replica; also its threads."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a replica; with any, the model is put there."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the network; auto: float32, in which a document does not depend on what shares its batch."""
    batch: int = Field(default=16, ge=1)
    """Documents that a replica makes at once."""
    queue: int = Field(default=64, ge=0)
    """Documents that wait at a replica; more are refused (429)."""
    api_key_env: str = ""
    """Environment variable that holds the API key; none leaves the server open."""
    follow_s: float = Field(default=0, ge=0)
    """Seconds between looks at where `models:/name@alias` points; 0 stays with the version found at the start."""
    body_s: float = Field(default=30, gt=0)
    """Seconds within which a request's body must have arrived."""

    @model_validator(mode="after")
    def _consistent(self) -> "ServeArguments":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"{self.max_replicas} replicas at most are fewer than {self.replicas}")
        if self.follow_s and not (self.model.startswith("models:/") and "@" in self.model):
            raise ValueError("follow_s: only models:/NAME@ALIAS can be followed")
        return self

    @property
    def room(self) -> Room:
        """What a replica takes on."""
        return Room(self.queue, max(1, int(self.cpus)))

    @property
    def limits(self) -> Limits:
        """What a request may bring."""
        return Limits(body_s=self.body_s)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the Serve deployment. Its own bound on requests is so wide that ours decides."""
        scaling = {
            "min_replicas": self.replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.batch,
        }
        return {
            **({"autoscaling_config": scaling} if self.max_replicas else {"num_replicas": self.replicas}),
            "max_ongoing_requests": self.batch + self.queue + SLACK,
            "max_queued_requests": 4 * (self.batch + self.queue + SLACK),
            "graceful_shutdown_timeout_s": DRAIN_S,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }
