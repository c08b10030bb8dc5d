"""How the retries of workers reach the report of the driver: through the key-value store of Ray's head.

A worker writes all its counts under a key of its own, and only when one grew; so a job that met no fault sends
nothing, and one whose worker was killed still tells what that one met.
"""

import json
import sys
from collections.abc import Mapping

from workflows.store_retries import RETRIES

_NAMESPACE = b"oneflow-retries"


def tell_driver() -> None:
    """In a task: count towards the job that it belongs to."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_put

    if not ray.is_initialized():
        # A task that is run in the driver's own process counts there.
        return
    context = ray.get_runtime_context()
    key = f"{context.get_job_id()}:{context.get_worker_id()}".encode()

    def tell(counts: Mapping[str, int]) -> None:
        _internal_kv_put(key, json.dumps(counts).encode(), overwrite=True, namespace=_NAMESPACE)

    RETRIES.expect_store()
    RETRIES.tell = tell


def gather() -> None:
    """In the driver, when its tasks are done: add what they counted to the counts of this process."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list

    job = f"{ray.get_runtime_context().get_job_id()}:".encode()
    try:
        for key in _internal_kv_list(job, namespace=_NAMESPACE):
            RETRIES.add(json.loads(_internal_kv_get(key, namespace=_NAMESPACE) or b"{}"))
            _internal_kv_del(key, namespace=_NAMESPACE)
    except Exception as error:
        # Ray's head is gone, which the job's own error tells better; but for counts it would have been done.
        print(f"retries of the workers are not known: {error}", file=sys.stderr)
