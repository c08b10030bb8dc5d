"""What a replica starts with: its model where it belongs, and somebody who follows the alias."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflows.serving.engine import Engine

if TYPE_CHECKING:
    from oneflow_core.pipeline import OneFlowPipeline
    from workflows.serving.arguments import ServeArguments
    from workflows.serving.upgrade import Follower


def start(arguments: ServeArguments) -> tuple[Engine, Follower | None]:
    """The engine with its model loaded, and the thread that changes the model where one is asked for."""
    import torch

    from workflows.serving.upgrade import Follower

    torch.set_num_threads(arguments.room.threads)
    engine = Engine(load(arguments.model, gpu=arguments.gpus > 0), arguments.room, arguments.limits)
    if not arguments.follow_s:
        return engine, None
    follower = Follower(
        engine, arguments.model, arguments.follow_s, lambda url: load(url, gpu=arguments.gpus > 0)
    )
    follower.start()
    return engine, follower


def load(model: str, *, gpu: bool) -> OneFlowPipeline:
    """The model on the CPU in float32, or on this replica's GPU in bfloat16."""
    import torch

    from oneflow_core.pipeline import OneFlowPipeline

    if gpu:
        return OneFlowPipeline.from_pretrained(model, device="cuda", dtype=torch.bfloat16)
    return OneFlowPipeline.from_pretrained(model)
