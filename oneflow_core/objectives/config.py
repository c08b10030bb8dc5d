"""What an objective is told: how documents are corrupted and how the parts of the loss are weighed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from oneflow_core.flows.image import Prediction
from oneflow_core.flows.schedule import Schedule, build_schedule
from oneflow_core.model.config import ObjectiveKind
from oneflow_core.objectives.tasks import TaskMixture

TextNormaliser = Literal["batch", "constant", "length"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """One for all objectives; a field that one of them does not know says so.

    Raises:
        ValueError: a value outside its range, or a schedule of an unknown name.
    """

    kind: ObjectiveKind = "oneflow"
    """oneflow, or a baseline on the same trunk, documents and tasks: transfusion (AR + FM) or masked (Mask + FM)."""
    schedule: str = "linear"
    """kappa: linear (the paper), cosine, power:<exponent>, table:<values>, or adaptive: a table fitted while training
    goes on (`flows.adaptive`), and linear wherever no table is given. Not for transfusion."""
    adaptive_every: int = 500
    """Steps between two fits of the adaptive schedule. A table serves from that many steps after its fit on, so that
    data may be prepared ahead."""
    adaptive_share: float = 0.5
    """How far the adaptive schedule goes from linear (0) to equal falls of the loss (1); below 1, as the share bounds
    its slope."""
    adaptive_memory: float = 0.5
    """What is left of the statistics of the adaptive schedule after each fit."""
    mixture: TaskMixture = field(default_factory=TaskMixture)
    image_weight: float = 1.0
    """Weight of the image loss beside the text loss."""
    image_loss: Prediction = "velocity"
    """Where the image error is measured: velocity (the paper), or the clean latent (`flow_error`)."""
    image_time_mean: float = -0.6
    """Mean of the logit-normal law of t_img on the independent schedule (METHOD 12); interleaved times are forced."""
    image_time_std: float = 1.0
    """Its standard deviation; 0 means uniform times."""
    text_normaliser: TextNormaliser = "batch"
    """What the text loss is divided by: target tokens of the global batch; `text_constant` for each document with a
    text; or "length", the literal 1/n of eq. 7 with n the tokens of the corrupted document, then the documents."""
    text_constant: float = 128.0
    """Tokens that a document counts as under the constant normaliser."""
    time_weight: Literal["none", "hazard"] = "none"
    """hazard: the text loss of a document is weighed by kappa'/(1 - kappa), as in Edit Flows; none: the paper.
    For oneflow."""
    time_weight_cap: float = 20.0
    """Largest such weight; without a cap a network that is not told the time learns to insert nothing (METHOD 7.2).
    For masked it caps 1 / (1 - kappa), which weighs its loss always."""
    complete_weight: float = 1.0
    """Weight of the text loss where an interleaved document's text is complete (clock above 1): more makes a network
    that is not told the time insert less (METHOD 7.6). For oneflow."""
    max_text_tokens: int = 512
    """Longer texts are cut to this many tokens a segment."""
    copies: int = 1
    """Corruptions of a document in one example; with `prompt_attention` prefix they share its prompt."""
    masked_length: int = 64
    """For masked: length that texts are filled up to with the end symbol, which is what it can write at most."""

    spurious: float = 0.1
    """Mean number of wrong tokens put into a text for each of its kept ones, so that taking out is learnt. For oneflow
    whose counts are free."""

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies {self.copies}: must be at least 1")
        if self.spurious < 0:
            raise ValueError(f"spurious {self.spurious}: must not be negative")
        if self.adaptive_every < 1:
            raise ValueError(f"adaptive_every {self.adaptive_every}: must be at least 1")
        for name in ("adaptive_share", "adaptive_memory"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        self.build_schedule()

    def build_schedule(self) -> Schedule:
        """kappa as the name says; linear for adaptive, which has no table of its own."""
        return build_schedule("linear" if self.schedule == "adaptive" else self.schedule)
