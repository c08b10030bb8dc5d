"""What a replica starts with: its model where it belongs, and somebody who follows the alias."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from workflows.process import SWITCH_S
from workflows.serving.engine import Engine
from workflows.serving.resolution import SCHEME, version_of

if TYPE_CHECKING:
    from oneflow_core.pipeline import OneFlowPipeline
    from workflows.serving.arguments import ServeArguments
    from workflows.serving.upgrade import Follower


def start(arguments: ServeArguments, first: str = "") -> tuple[Engine, Follower | None]:
    """The engine with its model loaded, and the thread that follows the alias where one is asked for.

    `first` is the version that the alias pointed to when the server was started: a replica that starts later serves it
    where the alias has come to point to one that does not load.
    """
    import torch

    from workflows.serving.upgrade import Follower, loaded

    torch.set_num_threads(arguments.room.threads)
    sys.setswitchinterval(SWITCH_S)

    def load_here(url: str) -> OneFlowPipeline:
        return load(url, gpu=arguments.gpus > 0)

    pipeline, failure = loaded(arguments.model, first, load_here)
    engine = Engine(pipeline, arguments.room, arguments.limits)
    if not arguments.follow_s:
        return engine, None
    follower = Follower(engine, arguments.model, arguments.follow_s, load_here)
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


def load(model: str, *, gpu: bool) -> OneFlowPipeline:
    """The model on the CPU in float32, or on this replica's GPU in bfloat16."""
    import torch

    from oneflow_core.pipeline import OneFlowPipeline

    if gpu:
        return OneFlowPipeline.from_pretrained(model, device="cuda", dtype=torch.bfloat16)
    return OneFlowPipeline.from_pretrained(model)
