"""What a replica starts with: its model where it belongs, and somebody who follows the alias."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from workflows.serving.engine import Engine
from workflows.serving.model_process import ModelProcess
from workflows.serving.resolution import SCHEME, version_of

if TYPE_CHECKING:
    from workflows.serving.arguments import ServeArguments
    from workflows.serving.upgrade import Follower


log = logging.getLogger("ray.serve")


def start(arguments: ServeArguments, first: str = "") -> tuple[Engine, Follower | None]:
    """The engine with its model loaded, and the thread that follows the alias where one is asked for.

    `first` is the version that the alias pointed to when the server was started: a replica that starts later serves it
    where the alias has come to point to one that does not load.
    """
    from workflows.serving.upgrade import Follower, loaded

    def load(url: str) -> ModelProcess:
        model = ModelProcess(
            url,
            places=arguments.batch,
            gpu=arguments.gpus > 0,
            dtype=arguments.dtype,
            threads=arguments.room.threads,
        )
        model.when_gone(_follow)
        return model

    model, failure = loaded(arguments.model, first, load)
    engine = Engine(model, arguments.room, arguments.limits)
    if not arguments.follow_s:
        return engine, None
    follower = Follower(engine, arguments.model, arguments.follow_s, load)
    if failure is not None:
        follower.report("", "failed", failure)
    follower.start()
    return engine, follower


def first_version(arguments: ServeArguments) -> str:
    """`models:/name/version` of what a followed alias points to now; nothing where none is followed."""
    if not arguments.follow_s:
        return ""
    name, version, _ = version_of(arguments.model)
    return f"{SCHEME}{name}/{version}"


def _follow(code: int) -> None:
    """A replica without its model is none: it ends, its requests get what those of a killed one get, and Serve starts
    another."""
    log.critical("the process of the model ended (exit code %d), and the replica with it", code)
    os._exit(1)
