"""Ray Train's elastic scaling, at numbers of workers that divide the lanes: another number could not share them out.

Ray (2.60, pinned) takes as many workers as fit between the least and the most; it has no setting for which numbers
will do, so its policy is derived from. Fixed numbers of workers are left to Ray as they are.
"""

import logging
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.config import ScalingConfig

log = logging.getLogger(__name__)

CANCEL_S = 10.0
_NAMESPACE = b"oneflow-elastic"


def workers_for(possible: int, lanes: int, tensor: int = 1) -> int:
    """The largest number of workers up to `possible` that makes groups of `tensor` ranks whose number divides `lanes`;
    0 for none."""
    groups = range(min(possible // tensor, lanes), 0, -1)
    return tensor * next((count for count in groups if lanes % count == 0), 0)


class DivisorPolicy(ElasticScalingPolicy):
    """As many workers as the cluster has room for, rounded down to groups of `tensor` whose number divides
    `lanes`.

    A driver that was killed leaves its reservation, which Ray would keep for three minutes: the next controller of
    the same run, known by `key`, gives it back.
    """

    def __init__(self, scaling_config: ScalingConfig, lanes: int, tensor: int, key: str) -> None:
        super().__init__(scaling_config)
        self._lanes, self._tensor, self._key = lanes, tensor, key.encode()

    def after_controller_start(self, train_run_context: Any) -> None:
        """Reserve; then cancel what an earlier controller of this run reserved."""
        super().after_controller_start(train_run_context)
        before = _internal_kv_get(self._key, namespace=_NAMESPACE)
        _internal_kv_put(self._key, str(self._requester_id).encode(), overwrite=True, namespace=_NAMESPACE)
        if before:
            try:
                cancelled = self._autoscaling_coordinator.cancel_request.remote(before.decode())
                ray.get(cancelled, timeout=CANCEL_S)
            except ray.exceptions.RayError as error:
                log.warning("an earlier reservation of this run is kept until it expires: %s", error)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return workers_for(possible, self._lanes, self._tensor)


class DivisorTrainer(TorchTrainer):
    """A TorchTrainer that resizes by `DivisorPolicy` where its scaling is elastic."""

    def __init__(self, *arguments: Any, lanes: int, tensor: int, key: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lanes, self._tensor, self._key = lanes, tensor, key

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = DivisorPolicy(
                self.scaling_config, self._lanes, self._tensor, self._key
            )
        return super()._initialize_and_run_controller(**arguments)
