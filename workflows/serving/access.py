"""The API key: read where the server is started, known to replicas by its digest alone."""

from __future__ import annotations

import hashlib
import hmac
import os

from workflows.errors import UsageError
from workflows.serving.wire import BadRequest

SHORTEST = 16


def digest_of(variable: str) -> str:
    """SHA-256 of the key in that environment variable; nothing where no variable is named.

    Raises:
        UsageError: the variable is not set, or its key is too short to keep anybody out.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "")
    if len(key) < SHORTEST:
        cause = f"it holds {len(key)} characters" if key else "it is not set"
        raise UsageError(
            f"the API key in {variable}", cause, f"set it to a random key of {SHORTEST} characters or more"
        )
    return hashlib.sha256(key.encode()).hexdigest()


def demand(authorization: str, digest: str) -> None:
    """Lets through `Authorization: Bearer KEY` with the key of that digest, and all where there is no digest.

    Raises:
        BadRequest: another key, or none (401).
    """
    if not digest:
        return
    scheme, _, key = authorization.partition(" ")
    given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()
    if scheme.lower() != "bearer" or not hmac.compare_digest(given, digest):
        raise BadRequest(
            401,
            "Authorization",
            "no valid API key",
            "send Authorization: Bearer KEY",
            {"WWW-Authenticate": "Bearer"},
        )
