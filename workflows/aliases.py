"""Which version holds an alias of a registered model, which ones held it before, and the way back.

The holders of an alias, oldest first and the present one last, are the tag `alias.<alias>.history` of the registered
model. A version says in its own tags whom it followed (`alias.<alias>.before`), when (`.at`) and why (`.why`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflows.errors import Refused

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEPT = 100
"""Holders that are remembered."""
TAG_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class Moved:
    """An alias at its version, and the version that held it before ("" for none)."""

    name: str
    alias: str
    version: str
    before: str

    @property
    def uri(self) -> str:
        """The model by its alias."""
        return f"models:/{self.name}@{self.alias}"


def move(client: MlflowClient, name: str, alias: str, version: str, why: str) -> Moved:
    """Points `alias` at `version` and remembers its holder; a version that holds it already is told nothing.

    A process that dies in between leaves an alias that is moved and a history that `roll_back` still understands.
    """
    holder = holder_of(client, name, alias)
    if holder == version:
        return Moved(name, alias, version, version)
    known = _with(history(client, name, alias), holder)
    if holder and known != history(client, name, alias):
        _remember(client, name, alias, known)
    client.set_registered_model_alias(name, alias, version)
    _remember(client, name, alias, _with(known, version))
    _tell(client, name, alias, version, holder, why)
    return Moved(name, alias, version, holder)


def roll_back(client: MlflowClient, name: str, alias: str) -> Moved:
    """Points `alias` at the version that held it before the present one; again and again back through history.

    Versions that were deleted since are passed over.

    Raises:
        Refused: nobody holds the alias, or no earlier holder is known.
    """
    holder = holder_of(client, name, alias)
    what = f"models:/{name}@{alias}"
    if not holder:
        raise Refused(what, "no version holds that alias", "oneflow models promote gives it to one")
    past = _with(history(client, name, alias), holder)[:-1]
    there = {str(v.version) for v in client.search_model_versions(f"name = '{name}'")}
    while past and (past[-1] not in there or past[-1] == holder):
        past.pop()
    if not past:
        cause = (
            f"version {holder} holds it, and no version that is still there is known to have held it before"
        )
        raise Refused(what, cause, "oneflow models promote gives it to any version")
    # Shorter history first: should this process die now, the same command does the rest.
    _remember(client, name, alias, past)
    client.set_registered_model_alias(name, alias, past[-1])
    _tell(client, name, alias, past[-1], holder, f"rolled back from version {holder}")
    client.set_model_version_tag(
        name, holder, f"alias.{alias}.rolled_back", f"to version {past[-1]} at {_now()}"
    )
    return Moved(name, alias, past[-1], holder)


def holder_of(client: MlflowClient, name: str, alias: str) -> str:
    """The version that holds `alias`, or ""."""
    held = dict(client.get_registered_model(name).aliases).get(alias)
    return "" if held is None else str(held)


def history(client: MlflowClient, name: str, alias: str) -> list[str]:
    """Versions that are known to have held `alias`, oldest first; moves that others made of it are not in it."""
    told = dict(client.get_registered_model(name).tags or {}).get(_key(alias), "")
    return [version for version in told.split(",") if version]


def _with(known: list[str], holder: str) -> list[str]:
    """`known` with `holder` at its end: somebody may have moved the alias without us."""
    return known if not holder or known[-1:] == [holder] else [*known, holder]


def _remember(client: MlflowClient, name: str, alias: str, versions: list[str]) -> None:
    client.set_registered_model_tag(name, _key(alias), ",".join(versions[-KEPT:]))


def _tell(client: MlflowClient, name: str, alias: str, version: str, before: str, why: str) -> None:
    tags = {"before": before or "none", "at": _now(), "why": why[:TAG_CHARACTERS]}
    for suffix, value in tags.items():
        client.set_model_version_tag(name, version, f"alias.{alias}.{suffix}", value)


def _key(alias: str) -> str:
    return f"alias.{alias}.history"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
