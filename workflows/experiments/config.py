"""The config of a sweep: what is trained, which keys vary and how, and by which metric trials are judged."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from workflows.config import Config, flattened, load
from workflows.training.config import TrainConfig

WEIGHED = ("objective.image_weight", "objective.complete_weight", "objective.time_weight")
"""Keys on which the total loss itself depends, so that it cannot judge them."""


class SearchSettings(Config):
    """The values of one key: one of the four."""

    grid: list[Any] | None = Field(None, min_length=1)
    """Each of these, with each of every other grid."""
    choice: list[Any] | None = Field(None, min_length=1)
    """One of these, drawn anew for each trial."""
    uniform: tuple[float, float] | None = None
    """A number between these two."""
    loguniform: tuple[float, float] | None = None
    """A number between these two, both above 0, whose logarithm is uniform: for rates and weights."""

    @model_validator(mode="after")
    def _one_law(self) -> "SearchSettings":
        given = {name: value for name, value in self if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of grid, choice, uniform, loguniform, not {sorted(given) or 'none'}")
        bounds = self.uniform or self.loguniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"the first bound {bounds[0]} must lie below the second {bounds[1]}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform from {self.loguniform[0]}: bounds must be above 0")
        return self


class EarlySettings(Config):
    """Stopping trials that fall behind (ASHA: Li et al. 2020, arXiv 1810.05934)."""

    grace_steps: int = Field(ge=1)
    """Steps that every trial may take."""
    reduction: float = Field(3.0, gt=1)
    """At grace_steps, and at each `reduction` times more, one in `reduction` of the trials goes on."""


def _laws(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and what they are searched by, out of mappings within mappings."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        within = isinstance(value, Mapping) and value and all(isinstance(v, Mapping) for v in value.values())
        found |= _laws(value, f"{prefix}{key}.") if within else {f"{prefix}{key}": value}
    return found


class ExperimentConfig(Config):
    """A sweep. Its trials are runs of `oneflow train`, nested under one run in MLflow."""

    name: str
    """Name of the sweep's run in MLflow; that of a trial has its values behind it."""
    train: str
    """Preset or YAML file of kind train that is varied."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of it that differ in every trial: {budget.steps: 300}."""
    space: dict[str, SearchSettings] = Field(min_length=1)
    """Dotted keys of it that vary: {optimiser.lr: {loguniform: [1.0e-4, 1.0e-2]}}."""
    samples: int = Field(1, ge=1)
    """Draws for every point of the grid. More of them later add trials and change none."""
    seed: int = Field(0, ge=0)
    """Of the draws."""
    metric: str | dict[str, float] = "heldout/loss"
    """What judges a trial, as it stands at the end: a metric, or several with weights that are added up."""
    mode: Literal["min", "max"] = "min"
    """Whether less is better."""
    concurrent: int = Field(1, ge=1)
    """Trials at once; those whose workers find no room in the cluster wait."""
    early: EarlySettings | None = None
    """Stops trials that fall behind; none: all run to their end. Metrics are seen at checkpoints."""

    @property
    def terms(self) -> dict[str, float]:
        """The metrics that are added up, with their weights."""
        return {self.metric: 1.0} if isinstance(self.metric, str) else self.metric

    def train_config(self, values: dict[str, Any]) -> TrainConfig:
        """The training with `values` of dotted keys; UsageError where a key or a value is wrong."""
        from json import dumps

        given = {**self.changes, **values}
        config: TrainConfig = load("train", self.train, [f"{key}={dumps(v)}" for key, v in given.items()])
        return config

    @field_validator("changes", "space", mode="before")
    @classmethod
    def _by_dotted_keys(cls, tree: Any, info: ValidationInfo) -> Any:
        """As --set changes.budget.steps=30 and --set space.optimiser.lr.grid=[1.0e-3] leave them."""
        if not isinstance(tree, Mapping):
            return tree
        return flattened(tree) if info.field_name == "changes" else _laws(tree)

    @field_validator("metric")
    @classmethod
    def _some_metric(cls, metric: str | dict[str, float]) -> str | dict[str, float]:
        if not metric:
            raise ValueError("name at least one metric")
        return metric

    @model_validator(mode="after")
    def _the_metric_can_judge(self) -> "ExperimentConfig":
        varied = sorted(set(self.space) & set(WEIGHED))
        total = sorted(name for name in self.terms if name in ("heldout/loss", "train/loss"))
        if varied and total:
            parts = "{heldout/text/ce: 1, heldout/image/mse: 4}"
            raise ValueError(
                f"{total[0]} itself depends on {varied[0]}: judge by its parts, e.g. metric: {parts}"
            )
        if twice := sorted(set(self.space) & set(self.changes)):
            raise ValueError(f"{twice[0]} stands in changes and in space")
        return self
