"""A job on a Ray job server: submit, follow its log, and end as it ended."""

import asyncio
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from workflows.errors import OneFlowError, UsageError
from workflows.submit.config import JobConfig

_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_SETTLE_S = 30.0


class JobReport(BaseModel):
    """How a submitted job ended (or that it runs, where nobody waited)."""

    name: str
    submission_id: str
    address: str
    status: str
    exit_code: int | None
    """Of the command itself; null while it runs or where it was stopped."""
    message: str | None


def submit(job: JobConfig, address: str, python: str | None = None) -> JobReport:
    """Start `job` on the job server at `address` and return at once.

    `python` runs it there: this one where the server is on this machine, else the `python` of the cluster's PATH.
    """
    if job.serve:
        raise UsageError(
            f"job {job.name}", "it is a service, not a command", "use --render, or: oneflow serve MODEL"
        )
    client = _client(address)
    entrypoint = shlex.join([python or _python_for(address), "-m", "workflows", *job.command])
    with _told(address):
        submission_id: str = client.submit_job(
            entrypoint=entrypoint,
            runtime_env={"env_vars": dict(job.env)} if job.env else None,
            metadata={"job": job.name},
        )
        return _report(job.name, client, submission_id, address)


def follow(report: JobReport, write: Callable[[str], object]) -> JobReport:
    """Hand the job's log to `write` as it comes, until the job ends; how it ended."""
    client = _client(report.address)

    async def pump() -> None:
        async for text in client.tail_job_logs(report.submission_id):
            write(text)

    with _told(report.address):
        asyncio.run(pump())
        deadline = time.monotonic() + _SETTLE_S
        ended = _report(report.name, client, report.submission_id, report.address)
        while ended.status not in _ENDED and time.monotonic() < deadline:
            time.sleep(0.1)
            ended = _report(report.name, client, report.submission_id, report.address)
    return ended


def exit_code(report: JobReport) -> int:
    """What this command ends with: what the job ended with, where its command says so."""
    if report.status == "SUCCEEDED":
        return 0
    return report.exit_code if report.exit_code in (1, 2, 3) else 1


def _report(name: str, client: Any, submission_id: str, address: str) -> JobReport:
    info = client.get_job_info(submission_id)
    return JobReport(
        name=name,
        submission_id=submission_id,
        address=address,
        status=str(info.status.value),
        exit_code=info.driver_exit_code,
        message=info.message,
    )


def _client(address: str) -> Any:
    if not address.startswith(("http://", "https://")):
        raise UsageError(f'--address "{address}"', "no URL", "write it like http://127.0.0.1:8265")
    from ray.job_submission import JobSubmissionClient

    with _told(address):
        return JobSubmissionClient(address)


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn what the client raises into a OneFlowError that names the address."""
    try:
        yield
    except ConnectionError as error:
        raise OneFlowError(
            f"job server {address}", "nothing answers there", "see the address with: oneflow stack status"
        ) from error
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if not kinds & {"RuntimeError", "AuthenticationError"}:
            raise
        denied = "AuthenticationError" in kinds or "uthenti" in str(error)
        mend = "set RAY_AUTH_TOKEN to the cluster's token" if denied else "see the log of the job server"
        raise OneFlowError(f"job server {address}", str(error), mend) from error


def _python_for(address: str) -> str:
    return sys.executable if urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1") else "python"
