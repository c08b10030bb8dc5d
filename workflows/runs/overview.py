"""A run in one line of a list."""

import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workflows.runs.table import short
from workflows.tracking import ATTEMPT, RUN_KEY
from workflows.training.charts import view_path
from workflows.training.notes import CHANGED

if TYPE_CHECKING:
    from mlflow.entities import Run

HEAD = ["RUN", "ID", "EXPERIMENT", "STATUS", "BEGAN", "STEP", "HELD-OUT", "CHANGED"]
WIDE = 80
STEPPED = ("train/loss", "heldout/loss")


def row(run: "Run", experiments: Mapping[str, str]) -> dict[str, Any]:
    """What a list says of `run`; `experiments` names them by id."""
    loss = run.data.metrics.get("heldout/loss")
    steps = {m.key: m.step for m in run.data.to_proto().metrics}
    return {
        "id": run.info.run_id,
        "name": run.info.run_name or "",
        "experiment": experiments[run.info.experiment_id],
        "status": run.info.status,
        "attempt": int(run.data.tags.get(ATTEMPT, "1")),
        "key": run.data.tags.get(RUN_KEY, ""),
        "began_ms": run.info.start_time,
        "step": max((steps[name] for name in STEPPED if name in steps), default=0),
        "heldout_loss": loss if loss is not None and math.isfinite(loss) else None,
        "changed": run.data.tags.get(CHANGED, ""),
    }


def cells(found: Mapping[str, Any]) -> list[str]:
    """`row` as the cells under HEAD."""
    loss = found["heldout_loss"]
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(found["began_ms"] / 1000))
    status = found["status"] + (f" ({found['attempt']})" if found["attempt"] > 1 else "")
    told = "-" if loss is None else f"{loss:.4f}"
    names = [found["name"], found["id"][:8], found["experiment"], status, began, str(found["step"]), told]
    return [*names, short(found["changed"], WIDE)]


def charts_url(experiment_id: str, server: str | None = None) -> str | None:
    """The address of the experiment's charts on `server` (MLFLOW_TRACKING_URI); None where it has no pages."""
    server = server or os.environ.get("MLFLOW_TRACKING_URI", "")
    return f"{server.rstrip('/')}/{view_path(experiment_id)}" if server.startswith("http") else None
