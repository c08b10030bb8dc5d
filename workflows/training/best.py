"""The best weights of a run so far: one safetensors object and a pointer to it, put last."""

from dataclasses import asdict, dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from workflows.errors import OneFlowError
from workflows.storage import delete, exists, join, put_atomic, read_bytes, read_json, sha256, write_json

POINTER = "best.json"


@dataclass(frozen=True, slots=True)
class Best:
    """Averaged weights after `step`, and the held-out loss that chose them (None: nothing was held out)."""

    step: int
    loss: float | None
    file: str
    sha256: str
    schedule: str | None = None
    """Name of the kappa that they were last trained under; None in what earlier versions wrote."""

    def beats(self, other: "Best | None") -> bool:
        """Lower held-out loss; the later of two that have none, or that are equal."""
        if other is None or self.loss is None or other.loss is None:
            return True
        return self.loss <= other.loss


def read_best(root: str) -> Best | None:
    """The best so far below `root`, or None."""
    url = join(root, POINTER)
    if not exists(url):
        return None
    tree: dict[str, Any] = read_json(url)
    return Best(int(tree["step"]), tree["loss"], str(tree["file"]), str(tree["sha256"]), tree.get("schedule"))


def write_best(
    root: str, step: int, loss: float | None, weights: dict[str, Tensor], schedule: str | None = None
) -> Best:
    """Put `weights` if they beat what is there; returns the best after it."""
    before = read_best(root)
    data = save({name: t.detach().cpu().contiguous() for name, t in weights.items()}, {"format": "pt"})
    best = Best(step, loss, f"best/step-{step:09d}.safetensors", sha256(data), schedule)
    if not best.beats(before):
        return before or best
    put_atomic(join(root, best.file), data)
    write_json(join(root, POINTER), asdict(best))
    if before and before.file != best.file:
        delete(join(root, before.file))
    return best


def load_best(root: str) -> tuple[Best, dict[str, Tensor]]:
    """The best weights; OneFlowError when there are none or they are damaged."""
    best = read_best(root)
    if best is None:
        raise OneFlowError(f"training run at {root}", "it has no evaluated weights yet", "train it further")
    data = read_bytes(join(root, best.file))
    if sha256(data) != best.sha256:
        raise OneFlowError(join(root, best.file), "its bytes differ from their digest", "resume the training")
    return best, load(data)
