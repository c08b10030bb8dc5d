"""What storage raises, told in words that a user can act on."""

import errno

from workflows.errors import OneFlowError
from workflows.urls import without_secrets

_ENDPOINT = "AWS_ENDPOINT_URL"
_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or start the local store with: oneflow stack up"
)


def explain(url: str, error: Exception) -> Exception:
    """The OneFlowError that tells `error`, met at `url`; `error` itself where it is a bug, not a failed store."""
    if isinstance(error, OneFlowError):
        return error
    url = without_secrets(url)
    names = {kind.__name__ for kind in type(error).__mro__}
    for name, cause, mend in _BY_NAME:
        if name in names:
            return OneFlowError(url, cause.format(error=error), mend)
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return OneFlowError(url, *_BY_ERRNO[error.errno])
    told = _told(error)
    if told:
        return OneFlowError(url, *told)
    if names & {"OSError", "ClientError", "BotoCoreError"}:
        return OneFlowError(url, f"the store answered: {error}", "see the store's log, then try again")
    return error


def is_exists(error: Exception) -> bool:
    """Whether a conditional write was refused because the object is there."""
    if isinstance(error, FileExistsError):
        return True
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in {"PreconditionFailed", "ConditionalRequestConflict"}


def _told(error: Exception) -> tuple[str, str] | None:
    text = str(error)
    if isinstance(error, FileNotFoundError) and "bucket does not exist" in text:
        return "the bucket does not exist", "create the bucket, or correct its name in the URL"
    if isinstance(error, FileNotFoundError):
        return "nothing is there", "correct the URL, or run the step that writes it"
    if isinstance(error, PermissionError):
        return f"access denied ({text})", "correct the credentials, or their rights on it"
    if isinstance(error, ImportError):
        return f"its protocol needs a package that is missing ({text})", "install the package"
    if isinstance(error, ValueError) and "Protocol not known" in text:
        return text, "use s3://, file://, a local path, or install the filesystem's package"
    if isinstance(error, ValueError) and "Invalid endpoint" in text:
        return text, f"set {_ENDPOINT} to a URL such as http://127.0.0.1:8333"
    return None


_BY_NAME = (
    ("NoCredentialsError", "no credentials for S3 were found", _CREDENTIALS),
    ("PartialCredentialsError", "the credentials for S3 are incomplete ({error})", _CREDENTIALS),
    ("EndpointConnectionError", "{error}", f"start the store (oneflow stack up), or correct {_ENDPOINT}"),
    ("ConnectTimeoutError", "{error}", f"correct {_ENDPOINT}, or look whether a network rule is in the way"),
    ("ReadTimeoutError", "{error}", "try again; the store is overloaded or gone"),
)

_BY_ERRNO = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another disk"),
    errno.EDQUOT: ("the quota of the disk is used up", "free some space, or choose another disk"),
    errno.EROFS: ("the disk is read-only", "choose another directory"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "choose another directory"),
}
