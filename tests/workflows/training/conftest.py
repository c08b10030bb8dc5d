from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from workflows.training.config import ComputeSettings
from workflows.training.parallel import Worker, join_group


@pytest.fixture
def alone() -> Iterator[Worker]:
    """This process as the only worker of a group."""
    yield join_group(ComputeSettings(workers=1, device="cpu"))
    dist.destroy_process_group()
