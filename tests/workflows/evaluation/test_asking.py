"""Items against a real HTTP server: what is sent, what is tried again, what is recorded as failed."""

import re
import socket
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.errors import OneFlowError, UsageError
from workflows.evaluation.asking import A_REQUEST, PROMPT_BYTES, _parts, ask_all, identity, options
from workflows.evaluation.config import RequestsConfig, SamplingConfig
from workflows.evaluation.item import Item, Output
from workflows.evaluation.outputs import OutputStore
from workflows.evaluation.progress import Progress

from .oracle import deployment

RED = Item("a", "t2i/single", "heldout_random", ("a red circle",), "image", 5, "a red circle", max_images=1)
QUICK = RequestsConfig(concurrency=4, attempts=3, timeout_s=60)


def test_the_body_says_what_was_configured() -> None:
    config = RequestsConfig(image=SamplingConfig(steps=7, guidance=1.5))
    with deployment() as server:
        (output,) = ask_all(server.url, [RED], config)
        assert server.bodies == [
            {
                "segments": [{"type": "text", "text": "a red circle"}],
                "target": "image",
                "seed": 5,
                "steps": 7,
                "guidance": 1.5,
                "max_images": 1,
                "trace": False,
            }
        ]
    assert output.error == "" and len(output.images) == 1 and output.text == "" and output.attempts == 1
    assert output.model["name"] == "oracle"


def test_a_key_is_sent_where_a_variable_holds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    keyed = QUICK.model_copy(update={"api_key_env": "THE_KEY"})
    monkeypatch.setenv("THE_KEY", "s3cret")
    with deployment() as server:
        ask_all(server.url, [RED], keyed)
        ask_all(server.url, [RED], QUICK)
        assert server.keys == ["Bearer s3cret", None]
        monkeypatch.delenv("THE_KEY")
        with pytest.raises(UsageError, match="no such variable"):
            ask_all(server.url, [RED], keyed)


def test_the_body_is_what_the_service_accepts() -> None:
    import json

    from workflows.client import request_body
    from workflows.serving.wire import Limits, parse

    picture = Item(
        "b", "vqa", "heldout_random", (b"\x89PNG", "What colour is the ring?"), "text", 2**31, "red"
    )
    for item in (RED, picture):
        request = parse(json.dumps(request_body(item.prompt, **options(item, QUICK))).encode(), Limits())
        assert request.target == item.target and request.seed == item.seed


def test_what_takes_longest_is_asked_for_first_and_outputs_keep_their_order() -> None:
    targets = ["text", "image", "document", "text", "document", "image"]
    items = [replace(RED, id=str(n), target=target, seed=n) for n, target in enumerate(targets)]
    with deployment() as server:
        outputs = ask_all(server.url, items, QUICK.model_copy(update={"concurrency": 1}))
        assert [body["seed"] for body in server.bodies] == [2, 4, 1, 5, 0, 3]
        alone = [ask_all(server.url, [item], QUICK)[0].parts for item in items]
    assert [output.parts for output in outputs] == alone and len(set(alone)) > 1


def test_outputs_are_seen_as_they_come_and_those_that_were_kept_are_not(tmp_path: Path) -> None:
    items = [replace(RED, id=str(n)) for n in range(4)]
    asked_by_then: list[int] = []
    with deployment() as server, closing(OutputStore(str(tmp_path))) as store:
        one_by_one = QUICK.model_copy(update={"concurrency": 1})
        ask_all(server.url, items[:1], one_by_one, store=store)
        server.slow_s = 0.5

        def seen(item: Item, output: Output) -> None:
            assert any(key.startswith(f"{item.id} ") for key in store.kept) and output.images
            asked_by_then.append(len(server.bodies))

        ask_all(server.url, items, one_by_one, store=store, seen=seen)
        assert len(server.bodies) == 4
    assert len(asked_by_then) == 3 and asked_by_then[0] < 4


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with deployment() as server:
        server.troubles = [(status, b"busy")] * 2
        (output,) = ask_all(server.url, [RED], QUICK)
    assert output.error == "" and output.attempts == 3


def test_a_full_queue_is_waited_for_as_long_as_it_says_and_uses_no_try_up() -> None:
    with deployment() as server:
        server.troubles = [(429, b"full")] * 5
        server.retry_after = "0.05"
        started = time.monotonic()
        (output,) = ask_all(server.url, [RED], QUICK)
        assert output.error == "" and output.attempts == 6 and 0.25 <= time.monotonic() - started < 60
        server.troubles = [(429, b"full")] * 1000
        (output,) = ask_all(server.url, [RED], QUICK.model_copy(update={"patience_s": 2.0}))
    assert output.error == "HTTP 429: full" and output.attempts > 3


def test_another_model_behind_the_address_ends_it() -> None:
    with (
        deployment("shapes", "3") as server,
        pytest.raises(OneFlowError, match="served shapes version 2 and now"),
    ):
        ask_all(server.url, [RED], QUICK, model={"name": "shapes", "version": "2", "run_id": ""})


def test_tries_end() -> None:
    with deployment() as server:
        server.troubles = [(503, b"busy")] * 9
        (output,) = ask_all(server.url, [RED], QUICK)
    assert output.error == "HTTP 503: busy" and output.attempts == 3 and output.parts == ()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (422, b"no such field", "HTTP 422: no such field"),
        (200, b"<html>", "no JSON"),
        (200, b"[]", "no JSON object"),
        (200, b"{}", "cannot be read: KeyError"),
        (200, b'{"segments": [{"type": "image", "data": "!!"}]}', "cannot be read: Error"),
        (200, b'{"segments": [{"type": "image"}]}', "cannot be read: KeyError"),
    ],
)
def test_what_cannot_pass_is_recorded_at_once(status: int, body: bytes, reason: str) -> None:
    with deployment() as server:
        server.troubles = [(status, body)]
        outputs = ask_all(server.url, [RED, replace(RED, id="b")], RequestsConfig(concurrency=1, attempts=3))
    assert reason in outputs[0].error and outputs[0].attempts == 1
    assert outputs[1].error == "", "one failure must not touch another item"


def test_many_at_once_come_back_in_order() -> None:
    colours = ["red", "green", "blue", "yellow", "pink", "black"] * 10
    items = [
        Item(str(i), "t2i/single", "heldout_random", (f"a {c} circle",), "image", i, f"a {c} circle")
        for i, c in enumerate(colours)
    ]
    lines: list[str] = []
    with deployment() as server:
        outputs = ask_all(server.url, items, RequestsConfig(concurrency=16), progress=Progress(lines.append))
    by_colour = {c: {o.images for o, k in zip(outputs, colours, strict=True) if k == c} for c in set(colours)}
    assert all(len(images) == 1 for images in by_colour.values()) and len(set.union(*by_colour.values())) == 6
    assert lines[0] == "asking 60 items" and len(lines) == 2
    assert re.fullmatch(r"60/60 items, [\d.]+ a second, \d+ s, 0 failed", lines[1])


def _reds(count: int) -> list[Item]:
    return [replace(RED, id=str(number), seed=number) for number in range(count)]


def test_a_request_is_for_several_items_and_what_it_does_not_bring_is_asked_for_alone() -> None:
    items, many = _reds(32), QUICK.model_copy(update={"concurrency": 32})
    with deployment() as server:
        expected = [ask_all(server.url, [item], many)[0].parts for item in items]
        server.keys.clear()
        assert [o.parts for o in ask_all(server.url, items, many)] == expected and len(server.keys) == 4

        # One that cannot pass is recorded as it is alone; one that may is asked again.
        server.keys.clear()
        server.inner = {0: (422, "no"), 3: (503, "busy")}
        told = [(o.error, o.attempts) for o in ask_all(server.url, items, many)]
        assert sorted(told) == [("", 1)] * 31 + [("HTTP 422: no", 1)]
        assert len(server.keys) == 4 + 1 and server.inner == {}

        # A server that breaks off, and one that knows no such route.
        server.cuts = True
        assert [o.parts for o in ask_all(server.url, items, many)] == expected
        server.cuts = server.batches = False
        assert [o.parts for o in ask_all(server.url, items, many)] == expected


@given(st.lists(st.integers(0, 5 << 20), max_size=60), st.integers(1, A_REQUEST), st.integers(1, 20))
def test_requests_hold_every_item_once_in_order_and_are_bounded(
    sizes: list[int], most: int, lanes: int
) -> None:
    missing = [(str(n), replace(RED, prompt=(bytes(size),))) for n, size in enumerate(sizes)]
    parts = list(_parts(missing, most, lanes))
    assert [pair for part in parts for pair in part.items()] == missing
    for part in parts:
        assert 1 <= len(part) <= most
        assert len(part) == 1 or sum(len(i.prompt[0]) for i in part.values()) <= PROMPT_BYTES
    assert len(parts) >= min(lanes, len(sizes))


@pytest.mark.parametrize("at_once", [1, 3, 7, 20, 33])
def test_no_more_items_are_under_way_than_may_be_and_hardly_fewer(at_once: int) -> None:
    with deployment() as server:
        server.slow_s = 0.1
        ask_all(server.url, _reds(3 * at_once), RequestsConfig(concurrency=at_once))
        assert 0.75 * at_once <= server.most_at_once <= at_once


def test_a_silent_server_is_given_up() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        (output,) = ask_all(url, [RED], RequestsConfig(attempts=1, timeout_s=0.3))
        assert "timed out" in output.error and time.monotonic() - started < 60
    assert threading.active_count() < 50


def test_no_deployment_is_an_error_that_says_so() -> None:
    with pytest.raises(OneFlowError, match="no deployment answers"):
        identity("http://127.0.0.1:9")
    with deployment("shapes", "3", "run") as server:
        assert identity(server.url) == {"name": "shapes", "version": "3", "run_id": "run"}
