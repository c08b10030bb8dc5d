"""Ray Train's elastic scaling, at numbers of workers that divide the lanes: another number could not share them out.

Ray (2.60, pinned) takes as many workers as fit between the least and the most; it has no setting for which numbers
will do, so its policy is derived from. Fixed numbers of workers are left to Ray as they are.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.config import ScalingConfig


def workers_for(possible: int, lanes: int) -> int:
    """The largest number of workers up to `possible` that divides `lanes`; 0 for none."""
    return next((count for count in range(min(possible, lanes), 0, -1) if lanes % count == 0), 0)


class DivisorPolicy(ElasticScalingPolicy):
    """As many workers as the cluster has room for, rounded down to a divisor of `lanes`."""

    def __init__(self, scaling_config: ScalingConfig, lanes: int) -> None:
        super().__init__(scaling_config)
        self._lanes = lanes

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return workers_for(super()._count_possible_workers(reserved_resources), self._lanes)


class DivisorTrainer(TorchTrainer):
    """A TorchTrainer that resizes by `DivisorPolicy` where its scaling is elastic."""

    def __init__(self, *arguments: Any, lanes: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lanes = lanes

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = DivisorPolicy(self.scaling_config, self._lanes)
        return super()._initialize_and_run_controller(**arguments)
