"""Another version behind the same alias: loaded beside the one that serves, which goes on until it is done."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from workflows.serving.resolution import SCHEME, version_of
from workflows.urls import without_secrets

if TYPE_CHECKING:
    from workflows.serving.engine import Engine
    from workflows.serving.model import Model

log = logging.getLogger("ray.serve")


class Follower(threading.Thread):
    """Looks now and then where `models:/name@alias` points, and has the engine serve that version.

    Looks are spread over half to one and a half of `every_s`, so that replicas do not load all at once. A version
    that does not load, or makes nothing, is reported in `Engine.upgrade` and the log, and tried again at the next
    look; the one that serves goes on.
    """

    def __init__(self, engine: Engine, model: str, every_s: float, load: Callable[[str], Model]) -> None:
        super().__init__(name="follower", daemon=True)
        self.engine, self.model, self.every_s, self.load = engine, model, every_s, load
        self._ended = threading.Event()

    def run(self) -> None:
        """Until `end`."""
        while not self._ended.wait(self.every_s * random.uniform(0.5, 1.5)):
            self.look()

    def end(self) -> None:
        """No look after this."""
        self._ended.set()

    def look(self) -> None:
        """One look, and a change of model where the alias points elsewhere."""
        version = ""
        try:
            name, version, _ = version_of(self.model)
            if version == self.engine.served.identity["version"]:
                self._forget_failures()
                return
            model = self.load(f"{SCHEME}{name}/{version}")
        except Exception as error:
            log.warning("the upgrade to version %s failed: %s", version or "?", error)
            self.report(version, "failed", error)
            return
        before = self.engine.replace(model)
        self.report(version, "done")
        before.end()

    def _forget_failures(self) -> None:
        """The alias is back at the version that serves."""
        if self.engine.upgrade and self.engine.upgrade["outcome"] == "failed":
            self.engine.upgrade = None

    def report(self, version: str, outcome: str, error: Exception | None = None) -> None:
        """What became of a change, for `/healthz` and the meters."""
        cause = "" if error is None else without_secrets(" ".join(str(error).split()))[:300]
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.engine.upgrade = {"version": version, "outcome": outcome, "cause": cause, "at": at}
        self.engine.meters.upgrades.labels(outcome).inc()


def loaded(model: str, first: str, load: Callable[[str], Model]) -> tuple[Model, Exception | None]:
    """`model`, or `first` (where there is one) and why it was not `model`."""
    try:
        return load(model), None
    except Exception as error:
        if not first:
            raise
        log.warning("%s does not load, %s is served instead: %s", model, first, error)
        return load(first), error
