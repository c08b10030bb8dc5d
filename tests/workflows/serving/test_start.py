"""Servers that do not start, and why."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from workflows.errors import OneFlowError
from workflows.serving.service import Address, free_port, serving


def test_a_taken_port_is_an_error(cluster: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(OneFlowError, match=f"127.0.0.1:{port}.*--port"),
            serving("embedded", address=Address(port=port)),
        ):
            pass


def test_a_model_that_no_replica_can_load_is_an_error(cluster: Path, tmp_path: Path) -> None:
    with pytest.raises(OneFlowError, match="model_index.json"), serving(str(tmp_path)):
        pass


def test_a_model_that_is_not_there_is_an_error_before_ray_starts() -> None:
    with pytest.raises(OneFlowError, match="no such directory"), serving("nowhere/at/all"):
        pass


def test_free_ports_can_be_listened_on() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
