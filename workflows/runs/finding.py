"""Which run a person means: an id or the beginning of one, a run's name, a config's name, or a run key."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workflows.errors import UsageError
from workflows.tracking import RUN_KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MANY = 1000
"""Runs that a search looks through, newest first."""
SHORTEST = 4
"""Digits of an id's beginning."""
MEND = "oneflow runs list names the runs"


def experiments(client: "MlflowClient", name: str | None = None) -> dict[str, str]:
    """Ids of the experiments and their names; of one where `name` is given.

    Raises:
        UsageError: there is no experiment of that name.
    """
    found = {e.experiment_id: e.name for e in client.search_experiments()}
    if name is None:
        return found
    if name not in found.values():
        known = ", ".join(sorted(found.values()))
        raise UsageError(f"experiment {name}", "there is no such experiment", f"known: {known}")
    return {number: given for number, given in found.items() if given == name}


def newest(client: "MlflowClient", ids: Sequence[str], condition: str = "", most: int = MANY) -> list["Run"]:
    """Runs of the experiments that meet `condition` (MLflow's search syntax), newest first."""
    order = ["attributes.start_time DESC"]
    return list(client.search_runs(list(ids), condition, max_results=most, order_by=order))


def find(client: "MlflowClient", said: str) -> "Run":
    """The run that `said` means, in whatever experiment.

    Tried in this order: a whole id; a run key, a run's name, a config's name, of which the newest counts; the
    beginning of an id, which must mean one run.

    Raises:
        UsageError: none, or several whose ids begin so.
    """
    if "'" in said or not said.strip():
        raise UsageError(f"run {said!r}", "this names no run", MEND)
    ids = list(experiments(client))
    fields = [f"tags.`{RUN_KEY}`", "attributes.run_name", "params.`name`"]
    if re.fullmatch(r"[0-9a-f]{32}", said):
        fields.insert(0, "attributes.run_id")
    for field in fields:
        if found := newest(client, ids, f"{field} = '{said}'", 1):
            return found[0]
    begun = _beginning(client, ids, said)
    if len(begun) > 1:
        told = ", ".join(f"{r.info.run_id[:12]} ({r.info.run_name})" for r in begun[:5])
        raise UsageError(f"run {said}", f"{len(begun)} runs begin so: {told}", "write more of the id")
    if not begun:
        raise UsageError(f"run {said}", "no run has this id, name or key", MEND)
    return begun[0]


def _beginning(client: "MlflowClient", ids: Sequence[str], said: str) -> list["Run"]:
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST},31}}", said):
        return []
    return newest(client, ids, f"attributes.run_id LIKE '{said}%'", 10)
