"""Why a run failed, in words that a person can act on: on which rank and host, what, and the mend.

A worker that meets an error which another attempt would meet again writes it to the run's storage and ends, so that
Ray does not repeat it. Whatever else ends a worker is told from what Ray knows of it.
"""

import socket
from collections.abc import Mapping
from typing import Any

from workflows.errors import OneFlowError
from workflows.storage import delete, exists, join, read_json, write_json

FILE = "failure.json"
LONGEST = 500


def write_failure(root: str, rank: int, error: BaseException) -> None:
    """Keep the first failure of the ranks for `read_failure`."""
    own = isinstance(error, OneFlowError)
    told = {
        "rank": rank,
        "host": socket.gethostname(),
        "cause": f"{error.what}: {error.cause}" if own else f"{type(error).__name__}: {error}",  # type: ignore[attr-defined]
        "mend": error.mend if own else "",  # type: ignore[attr-defined]
    }
    write_json(join(root, FILE), told, if_absent=True)


def has_failed(root: str) -> bool:
    """Whether a rank wrote a failure since `clear_failure`."""
    return exists(join(root, FILE))


def read_failure(root: str) -> OneFlowError | None:
    """The failure that a rank wrote, or None."""
    if not has_failed(root):
        return None
    told: Mapping[str, Any] = read_json(join(root, FILE))
    where = f"training, rank {told['rank']} on {told['host']}"
    mend = told["mend"] or f"mend it and run the command again; {root} keeps its checkpoints"
    return OneFlowError(where, told["cause"], mend)


def clear_failure(root: str) -> None:
    """Begin anew: the cause may have been mended."""
    delete(join(root, FILE))


def explained(error: BaseException, root: str) -> OneFlowError:
    """What Ray raised when workers failed too often, as the error of the worker that failed first, with its rank.

    When a worker ends, its peers lose their connections and fail too: a worker that died, or one that raised an
    error of its own, is told rather than one that lost a peer.
    """
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    causes = {rank: _innermost(failure) for rank, failure in failures.items()}
    if not causes:
        own = _innermost(error)
        return own if isinstance(own, OneFlowError) else _told("training", own, root)
    rank = min(causes, key=lambda rank: (_consequence(causes[rank]), rank))
    cause = causes[rank]
    if isinstance(cause, OneFlowError):
        return OneFlowError(f"training, rank {rank}: {cause.what}", cause.cause, cause.mend)
    return _told(f"training, rank {rank}", cause, root)


def _told(where: str, cause: BaseException, root: str) -> OneFlowError:
    text = " ".join(str(cause).split())
    mend = f"mend the cause and run the command again: it goes on from the last checkpoint below {root}"
    return OneFlowError(where, f"{type(cause).__name__}: {text[-LONGEST:]}", mend)


def _consequence(cause: BaseException) -> bool:
    """Whether it looks like that of a worker whose peer has gone."""
    text = str(cause)
    return isinstance(cause, RuntimeError) and ("onnection" in text or "gloo" in text or "NCCL" in text)


def _innermost(error: BaseException) -> BaseException:
    while not isinstance(error, OneFlowError):
        inner = (
            getattr(error, "cause", None) or getattr(error, "health_check_failure", None) or error.__cause__
        )
        if inner is None:
            break
        error = inner
    return error
