"""Whole-object writes and reads of `workflows.storage` on S3, beside plain boto3 on the same store."""

import os
import time
import uuid
from collections.abc import Callable
from typing import Any

from workflows import storage
from workflows.bench.result import Result
from workflows.errors import OneFlowError

LARGE = 32 << 20
SMALL, SMALL_COUNT = 16 << 10, 64
BUCKET = "oneflow"


def run(runs: int) -> Result:
    """MiB/s of one 32 MiB object written and read back; `small_per_s` is our rate of 16 KiB objects, written in turn.

    Needs a running store: the embedded one, or that of AWS_ENDPOINT_URL with a bucket "oneflow".
    """
    if "AWS_ENDPOINT_URL" not in os.environ:
        raise OneFlowError("benchmark storage", "no store is running", "start it with: oneflow stack up")
    prefix = f"bench/{uuid.uuid4().hex}"
    data = os.urandom(LARGE)
    try:
        ours, peer = [], []
        for _ in range(runs):
            ours.append(_rate(lambda: _ours(prefix, data)))
            peer.append(_rate(lambda: _peer(prefix, data)))
        small = _small_rate(prefix)
    finally:
        storage.delete(f"s3://{BUCKET}/{prefix}", recursive=True)
    return Result("storage", "MiB/s", ours, peer, ("s3fs", "boto3"), {"small_per_s": small})


def _rate(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return 2 * LARGE / (1 << 20) / (time.perf_counter() - begun)


def _ours(prefix: str, data: bytes) -> None:
    url = f"s3://{BUCKET}/{prefix}/ours"
    storage.put_atomic(url, data)
    _same(storage.read_bytes(url), data)


def _peer(prefix: str, data: bytes) -> None:
    import boto3

    client: Any = boto3.client("s3")
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/peer", Body=data)
    _same(client.get_object(Bucket=BUCKET, Key=f"{prefix}/peer")["Body"].read(), data)


def _same(read: bytes, written: bytes) -> None:
    if read != written:
        raise OneFlowError("benchmark storage", "the store gave other bytes back", "do not use this store")


def _small_rate(prefix: str) -> float:
    data = os.urandom(SMALL)
    begun = time.perf_counter()
    for number in range(SMALL_COUNT):
        storage.put_atomic(f"s3://{BUCKET}/{prefix}/small-{number}", data)
    return SMALL_COUNT / (time.perf_counter() - begun)
