"""How a model is evaluated, and what it must reach."""

from typing import Self

from pydantic import Field, model_validator

from workflows.config import Config
from workflows.evaluation.suites.config import (
    ClipConfig,
    DataConfig,
    FeaturesConfig,
    JudgeConfig,
    SuiteName,
)

A_REPLICA = 64
"""Items under way for each replica."""


class ItemsConfig(Config):
    """How many items of the random hold-out a task has; every task has them for the other splits too."""

    t2i_single: int = Field(default=100, ge=0)
    """Prompts of one object, to be drawn."""
    t2i_multi: int = Field(default=60, ge=0)
    """Prompts of two to four objects, to be drawn."""
    caption_single: int = Field(default=100, ge=0)
    """Pictures of one object, to be described."""
    caption_multi: int = Field(default=60, ge=0)
    """Pictures of two to four objects, to be described."""
    vqa: int = Field(default=100, ge=0)
    """Questions about pictures."""
    story: int = Field(default=20, ge=0)
    """First texts of stories, to be told on with pictures."""
    combinations: float = Field(default=0.5, ge=0, le=1)
    """Items of each held-out combination split, as a share of the above."""
    no_prompt: int = Field(default=32, ge=0)
    """Items a task that are asked a second time without the prompt, as a control."""


class SamplingConfig(Config):
    """How a generation is run; null takes the model's own default."""

    steps: int | None = Field(default=None, ge=1, le=200)
    """Steps of the sampler."""
    guidance: float | None = Field(default=None, ge=0, le=20)
    """Classifier-free guidance."""
    temperature: float | None = Field(default=None, ge=0, le=5)
    """Of the token distribution."""


class RequestsConfig(Config):
    """How the deployment is driven."""

    concurrency: int | None = Field(default=None, ge=1, le=1024)
    """Items under way at once, up to 16 in a request; null is 64 for each of `serve.replicas`, four batches."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds that one try may take."""
    attempts: int = Field(default=4, ge=1)
    """Tries of an item alone before it is recorded as failed; being sent away from a full queue (429) is none."""
    patience_s: float = Field(default=900, gt=0)
    """Seconds of all tries of an item together, before it is recorded as failed."""
    api_key_env: str = ""
    """Environment variable that holds the key of the deployment at --url; none sends no key."""
    image: SamplingConfig = SamplingConfig()
    text: SamplingConfig = SamplingConfig()
    document: SamplingConfig = SamplingConfig()


class ReplicasConfig(Config):
    """The deployment that is started where no URL is given."""

    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, gt=0)
    """Cores, and threads, of a replica."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a replica."""


class Threshold(Config):
    """What one figure must reach."""

    metric: str
    """Name of the figure, e.g. t2i/single/colour."""
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the threshold of {self.metric} has no bound: give at_least or at_most")
        return self


class GateConfig(Config):
    """When a model version becomes the champion: every threshold holds, and nothing got significantly worse."""

    alias: str = "champion"
    """Alias that moves to the version."""
    thresholds: list[Threshold] = Field(min_length=1)
    no_regression: list[str] = []
    """Figures that may not fall behind the present champion's on the same items (a paired test)."""
    tolerance: float = Field(default=0.02, ge=0)
    """How far they may fall behind: refused is what is significantly worse than by this. A figure for which there is no
    test may not fall behind by more."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Chance that a version no worse than `tolerance` is refused, over all of `no_regression` together (Holm)."""


class CompareConfig(Config):
    """How two models are compared on the same items (`--against`)."""

    figures: list[str] = []
    """Names of the figures; empty takes all. Each one more makes the correction for their number harder."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Chance of calling any figure different that is not, over all of them together (Holm)."""


class EvaluateConfig(Config):
    """A suite with its items, how they are asked, and the gate."""

    suite: SuiteName = "shapes"
    seed: int = Field(default=0, ge=0)
    """Decides items and the generations' seeds."""
    items: ItemsConfig = ItemsConfig()
    """Of the shapes suite alone."""
    limit: int | None = Field(default=None, ge=1)
    """Prompts or pictures of a file that are taken, drawn by the seed; null takes all. Not of the shapes suite."""
    data: DataConfig = DataConfig()
    judge: JudgeConfig = JudgeConfig()
    features: FeaturesConfig = FeaturesConfig()
    clip: ClipConfig = ClipConfig()
    images_per_prompt: int = Field(default=1, ge=1, le=64)
    """Pictures of each prompt, each with a seed of its own (dpg-bench, geneval, clip-score)."""
    resamples: int = Field(default=200, ge=2)
    """Bootstrap resamples of figures that are no mean of items (CIDEr, BLEU-4, Frechet distance)."""
    requests: RequestsConfig = RequestsConfig()
    serve: ReplicasConfig = ReplicasConfig()
    compare: CompareConfig = CompareConfig()
    gate: GateConfig | None = None
    """Null judges nothing and moves no alias."""
    resume: str | None = None
    """Directory or fsspec URL where outputs are kept until all are there; null is below --out, or else below
    `$ONEFLOW_HOME/evaluations`. Give a URL where the driver's disk does not outlive it."""
    table_pictures: int = Field(default=2000, ge=0)
    """Items whose pictures the table in MLflow shows; the others' are in images.zip alone."""

    @property
    def concurrency(self) -> int:
        """Requests under way at once."""
        return self.requests.concurrency or A_REPLICA * self.serve.replicas
