"""The soak's own eyes: it sees a swap, a change, a slope; and its garbage is the same each time."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workflows.bench import garbage
from workflows.bench.garbage_wire import Case, Place, case
from workflows.bench.process_memory import EVERY_S, Sample, Watch, growth
from workflows.bench.soak import Soak
from workflows.bench.soak_answers import Book, of_pictures, of_segments
from workflows.bench.soak_requests import Outcome


def png(colour: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def answer(text: str, colour: int, seed: int = 1, time: float = 0.25) -> dict[str, Any]:
    parts = [{"type": "text", "text": text}, {"type": "image", "data": png(colour)}]
    return {"segments": parts, "trace": {"insertions": [{"time": time}]}, "seed": seed}


def test_a_swapped_answer_is_named() -> None:
    book = Book()
    assert (
        book.hear("one", of_segments(answer("a", 10))) == book.hear("two", of_segments(answer("a", 20))) == ""
    )
    assert book.hear("one", of_segments(answer("a", 20))) == "swapped: got the answer of two"
    assert book.hear("two", of_segments(answer("a", 20))) == ""


@pytest.mark.parametrize(
    "other", [answer("b", 10), answer("a", 14), answer("a", 10, seed=2), answer("a", 10, time=0.3)]
)
def test_any_other_answer_is_told(other: dict[str, Any]) -> None:
    book = Book()
    book.hear("one", of_segments(answer("a", 10)))
    assert book.hear("one", of_segments(other)) == "another answer than before"


def test_last_bits_of_a_picture_do_not_matter_and_twins_are_found() -> None:
    book = Book()
    assert book.hear("one", of_pictures([png(10)])) == book.hear("one", of_pictures([png(12)])) == ""
    book.hear("two", of_pictures([png(11)]))
    assert book.twins() == [("one", "two")]


def test_a_slope_and_its_error_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    at = np.arange(0.0, 1800.0, EVERY_S)
    mib = 700 + 30 * at / 3600 + rng.normal(0, 2, at.size)
    blocks = at.reshape(-1, 12).mean(1) / 3600, mib.reshape(-1, 12).mean(1)
    (slope, _), covariance = np.polyfit(*blocks, 1, cov=True)
    found, error = growth(at, mib)
    assert found == pytest.approx(slope) and error == pytest.approx(2 * np.sqrt(covariance[0, 0]))
    assert abs(found - 30) < error
    assert growth(at[:24], mib[:24])[1] == np.inf


def test_a_watch_tells_of_every_process_after_its_warm_up() -> None:
    watch = Watch(os.getpid())
    watch.look()
    assert [role for role, _ in watch.samples] == ["command"]
    held = [Sample(EVERY_S * n, 500.0 if n < 12 else 600.0, 900.0 + n, 10) for n in range(120)]
    watch.samples["replica", 1] = held
    told = watch.figures(warm_s=60)["replica 1"]
    assert (told["first_mib"], told["last_mib"]) == (600, 600)
    assert told["mib_per_hour"] == pytest.approx(0, abs=1e-6)
    assert watch.series()["replica 1"] == [500.0] + [600.0] * 9


def test_what_is_wrong_lowers_the_ratio() -> None:
    soak = Soak("http://127.0.0.1:1", os.getpid(), 60)
    for outcome in (Outcome(200), Outcome(429), Outcome(503), Outcome(200, "swapped: got the answer of two")):
        soak._attempt("caption", lambda o=outcome: o)  # type: ignore[misc]
    told = soak.result(Watch(os.getpid()), {}).to_json()
    assert told["ratio"] == 0.5 and told["swapped"] == 1
    assert told["wrong"]["caption, 503: 503 without a kill"] == 1
    assert told["attempts_by_status"] == {"200": 2, "429": 1, "503": 1}


def test_garbage_is_the_same_for_the_same_number() -> None:
    place = Place("127.0.0.1:1")
    cases = [case(number, place) for number in range(300)]
    assert [case(number, place) for number in range(300)] == cases
    assert [case(number, place, seed=1) for number in range(300)] != cases
    assert len({c.kind for c in cases}) > 15


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (b"HTTP/1.1 422 X\r\n\r\n{}", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 X\r\n\r\n", ""),
        (b"HTTP/1.1 500 X\r\n\r\n", "a failure of the server"),
        (b"HTTP/1.1 422 X\r\n\r\nHTTP/1.1 503 X\r\n\r\n", "a failure of the server"),
        (b"HTTP/1.1 204 X\r\n\r\n", "status 204"),
        (b"HTTP/1.1 422 X\r\n\r\nTraceback (most recent", "tells b'Traceback'"),
        (
            b'HTTP/1.1 422 X\r\n\r\n{"cause": "' + str(garbage.ROOT).encode(),
            f"tells {str(garbage.ROOT).encode()!r}",
        ),
        (b"", "no answer"),
    ],
)
def test_answers_to_garbage_are_judged(said: bytes, wrong: str) -> None:
    assert garbage.objection(Case("x", b"", frozenset({400, 422})), said) == wrong
