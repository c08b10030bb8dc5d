"""The line in front of a running batch, with a tiny model: turns, bounds, cancellation, and what breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from oneflow_core.encoders.latent import EncoderError
from oneflow_core.pipeline import GeneratedDocument, OneFlowPipeline, Prompt
from oneflow_core.running import Options, RunningBatch
from tests.tiny import tiny_parts
from workflows.serving.line import Broken, Closed, Full, Line
from workflows.serving.meters import Meters
from workflows.serving.model import Joining, LocalModel
from workflows.serving.ticket import Work

PROMPT = Prompt(("a red circle",), "image")


def work(seed: int = 0, steps: int = 6, **options: Any) -> Work:
    return Work(PROMPT, seed, Options(steps=steps, **options))


@asynccontextmanager
async def line_of(batch: int, queue: int) -> AsyncIterator[Line]:
    model = LocalModel(OneFlowPipeline(tiny_parts()), batch)
    line = Line(model, Meters(), queue=queue)
    try:
        yield line
    finally:
        line.close()
        assert await asyncio.to_thread(line.join, 30)
        model.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def same(made: GeneratedDocument, expected: GeneratedDocument) -> bool:
    pairs = zip(made.images, expected.images, strict=True)
    return all(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1 for a, b in pairs)


def counts(line: Line) -> dict[str, float]:
    (family,) = line.meters.documents.collect()
    return {s.labels["event"]: s.value for s in family.samples if s.name.endswith("_total")}


def test_each_document_is_what_it_is_alone() -> None:
    seeds, steps = range(7), (3, 9, 5, 7, 4, 8, 6)
    pipeline = OneFlowPipeline(tiny_parts())
    alone = [pipeline([PROMPT], seeds=s, steps=n)[0] for s, n in zip(seeds, steps, strict=True)]

    async def test() -> None:
        async with line_of(3, 9) as line:
            tickets = [line.submit([work(s, n)])[0] for s, n in zip(seeds, steps, strict=True)]
            made = await asyncio.gather(*(t.made for t in tickets))
            assert all(same(a, b) for a, b in zip(made, alone, strict=True))
            assert counts(line) == {"joined": 7, "left": 7}

    run(test())


def test_places_go_round_the_requests() -> None:
    async def test() -> None:
        order: list[str] = []

        def note(name: str, tickets: list[Any]) -> list[Any]:
            for i, ticket in enumerate(tickets):
                ticket.made.add_done_callback(lambda _, i=i: order.append(f"{name}{i}"))
            return tickets

        async with line_of(1, 20) as line:
            # One place: what is done first was let in first.
            with line._state:
                tickets = note("x", line.submit([work(steps=60)]))
                tickets += note("a", line.submit([work(i) for i in range(4)]))
                tickets += note("b", line.submit([work()]))
                tickets += note("c", line.submit([work(i) for i in range(2)]))
            await asyncio.gather(*(t.made for t in tickets))
        assert order == ["x0", "a0", "b0", "c0", "a1", "c1", "a2", "a3"]

    run(test())


def test_the_model_has_the_next_one_before_there_is_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    handed, join = list[int](), LocalModel.join

    def noted(self: LocalModel, key: int, joining: Joining) -> None:
        handed.append(key)
        join(self, key, joining)

    monkeypatch.setattr(LocalModel, "join", noted)

    async def test() -> None:
        async with line_of(1, 20) as line:
            (first,) = line.submit([work(steps=10_000)])
            (second,) = line.submit([work()])
            while len(handed) < 2:
                await asyncio.sleep(0.01)
            (third,) = line.submit([work()], watched=True)
            while third.prepared is None:
                await asyncio.sleep(0.01)
            assert handed == [first.key, second.key] and third.ahead == 1 and not second.made.done()
            line.cancel([first])
            await asyncio.gather(second.made, third.made)
            # The first of three is handed on as well; after it comes who has come meanwhile.
            (fourth,) = line.submit([work(steps=10_000)])
            three = line.submit([work(), work(), work()])
            while len(handed) < 5:
                await asyncio.sleep(0.01)
            (last,) = line.submit([work()])
            line.cancel([fourth])
            await asyncio.gather(*(t.made for t in (*three, last)))
            assert handed[3:] == [fourth.key, three[0].key, last.key, three[1].key, three[2].key]

    run(test())


def test_those_who_wait_hear_how_many_are_in_front() -> None:
    async def test() -> None:
        async with line_of(1, 20) as line:
            line.submit([work(steps=200)])
            while line.meters.running._value.get() < 1:
                await asyncio.sleep(0.01)
            with line._state:
                line.submit([work(i) for i in range(3)])
                watched = line.submit([work(i) for i in range(2)], watched=True)
                last = line.submit([work()], watched=True)
                # Turns: a0, w0, l0, a1, w1, a2.
                assert [t.ahead for t in (*watched, *last)] == [1, 4, 2]
            await asyncio.gather(*(t.made for t in (*watched, *last)))
            assert [t.ahead for t in (*watched, *last)] == [None] * 3

    run(test())


def test_a_full_line_refuses_and_takes_again_when_there_is_room() -> None:
    async def test() -> None:
        async with line_of(2, 1) as line:
            tickets = [line.submit([work(steps=50)])[0] for _ in range(3)]
            with pytest.raises(Full) as caught:
                line.submit([work()])
            with pytest.raises(Full):
                line.check()
            assert 1 <= caught.value.retry_after_s <= 120
            await asyncio.gather(*(t.made for t in tickets))
            line.check()
            await line.submit([work()])[0].made

    run(test())


def test_without_a_queue_only_free_places_are_given() -> None:
    async def test() -> None:
        async with line_of(1, 0) as line:
            (ticket,) = line.submit([work()])
            with pytest.raises(Full):
                line.submit([work()])
            await ticket.made

    run(test())


def test_the_cancelled_leave_at_the_next_step_wherever_they_are() -> None:
    async def test() -> None:
        async with line_of(1, 9) as line:
            (running,) = line.submit([work(steps=10_000)], watched=True)
            waiting = line.submit([work(i, steps=10_000) for i in range(3)])
            (last,) = line.submit([work(5)])
            await running.news.wait()
            while not running.seen():
                await asyncio.sleep(0.01)
            line.cancel([running, *waiting])
            assert same(await last.made, OneFlowPipeline(tiny_parts())([PROMPT], seeds=5, steps=6)[0])
            assert counts(line) == {"joined": 2, "cancelled": 4, "left": 1}
            line.cancel([last])
            assert counts(line)["cancelled"] == 4

    run(test())


def test_one_that_cannot_be_prepared_does_not_harm_its_neighbours() -> None:
    async def test() -> None:
        async with line_of(4, 9) as line:
            bad = work(0, temperature=-1.0)
            tickets = [line.submit([w])[0] for w in (work(1), bad, work(2))]
            made = await asyncio.gather(*(t.made for t in tickets), return_exceptions=True)
            assert isinstance(made[1], ValueError) and "temperature" in str(made[1])
            assert isinstance(made[0], GeneratedDocument) and isinstance(made[2], GeneratedDocument)
            assert counts(line) == {"joined": 2, "left": 2, "failed": 1}

    run(test())


@pytest.mark.parametrize("where", ["join", "step"])
def test_a_batch_that_breaks_is_replaced(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    whole, broken = getattr(RunningBatch, where), []

    def breaks(*given: Any) -> Any:
        if not broken:
            broken.append(1)
            raise RuntimeError("out of memory")
        return whole(*given)

    monkeypatch.setattr(RunningBatch, where, breaks)

    async def test() -> None:
        async with line_of(2, 9) as line:
            with pytest.raises(Broken):
                await line.submit([work()])[0].made
            assert isinstance(await line.submit([work()])[0].made, GeneratedDocument)
            assert not line.stuck(60)

    run(test())


def test_latents_that_cannot_be_decoded_cost_that_document_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are done in the same step, and the network's last velocity of the first is no number."""
    whole, seen = OneFlowPipeline.documents, list[int]()

    def documents(self: OneFlowPipeline, generations: Any) -> Any:
        if not seen:
            seen.append(len(generations))
            generations[0].segments[0].fill(np.nan)
        return whole(self, generations)

    async def test() -> None:
        async with line_of(2, 9) as line:
            monkeypatch.setattr(OneFlowPipeline, "documents", documents)
            first, second = line.submit([work(steps=3), work(5, steps=3)])
            with pytest.raises(EncoderError, match="not finite"):
                await first.made
            assert same(await second.made, expected)
            assert counts(line) == {"joined": 2, "failed": 1, "left": 1}
            assert seen == [2]

    expected = OneFlowPipeline(tiny_parts())([PROMPT], seeds=5, steps=3)[0]
    run(test())


def test_a_closed_line_serves_what_it_has_and_ends() -> None:
    async def test() -> None:
        async with line_of(1, 9) as line:
            tickets = [line.submit([work(i)])[0] for i in range(3)]
            line.close()
            with pytest.raises(Closed):
                line.submit([work()])
            assert len(await asyncio.gather(*(t.made for t in tickets))) == 3
            assert await asyncio.to_thread(line.join, 30)

    run(test())


def test_a_slow_reader_sees_the_end_all_the_same() -> None:
    async def test() -> None:
        async with line_of(1, 9) as line:
            (ticket,) = line.submit([Work(Prompt((), "document"), 7, Options(steps=60))], watched=True)
            document = await ticket.made
            snapshots = ticket.seen()
            steps = [s.step for s in snapshots]
            assert len(steps) <= 16 and steps == sorted(set(steps))
            assert len(snapshots[-1].elements) >= len(document.trace.insertions) + len(document.images)

    run(test())
