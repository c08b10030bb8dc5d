import os
import socket

import pytest

from workflows.errors import OneFlowError
from workflows.stack import ports


@pytest.fixture
def listener() -> "socket.socket":
    server = socket.socket()
    server.bind((ports.LOOPBACK, ports.choose(None, [])))
    server.listen()
    return server


def test_chosen_ports_can_be_bound_with_their_pair_and_differ() -> None:
    taken: list[int] = []
    for _ in range(20):
        taken.append(ports.choose(None, taken))
    assert len(set(taken)) == 20
    for port in taken:
        for number in (port, port + ports.GRPC_OFFSET):
            with socket.socket() as server:
                server.bind((ports.LOOPBACK, number))


def test_a_kept_port_stays_while_it_is_free(listener: socket.socket) -> None:
    busy = listener.getsockname()[1]
    free = ports.choose(None, [busy])
    assert ports.choose(free, []) == free
    assert ports.choose(busy, []) != busy
    assert ports.choose(free, [free]) != free
    listener.close()
    assert ports.choose(busy, []) == busy


def test_a_demanded_port_in_use_names_port_holder_and_mend(listener: socket.socket) -> None:
    busy = listener.getsockname()[1]
    with pytest.raises(OneFlowError) as caught:
        ports.demand(busy, "s3", paired=False)
    message = str(caught.value)
    assert str(busy) in message
    assert f"pid {os.getpid()}" in message
    assert "--set s3.port=PORT" in message
    with pytest.raises(OneFlowError, match=str(busy)):
        ports.demand(busy - ports.GRPC_OFFSET, "s3", paired=True)
    listener.close()
    assert ports.demand(busy, "s3", paired=False) == busy


def test_answers(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert ports.answers(port)
    assert not ports.is_free(port)
    listener.close()
    assert not ports.answers(port)
