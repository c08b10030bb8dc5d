"""A client of the tracking server whose failures are told as the house tells them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workflows.errors import OneFlowError
from workflows.tracking import client_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


@contextmanager
def tracking_server(what: str, mend: str) -> Iterator["MlflowClient"]:
    """The client of MLFLOW_TRACKING_URI; what it raises inside becomes a OneFlowError about `what`."""
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise OneFlowError(what, "MLFLOW_TRACKING_URI is not set", "oneflow stack up, or set it")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        yield client_of(uri)
    except MlflowException as error:
        raise OneFlowError(what, " ".join(str(error).split())[:300], mend) from error
