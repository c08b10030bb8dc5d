"""A worker that sleeps or is stopped within a step: all stacks are written, who is missing is told, the run resumes."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workflows.training.corpus import tiny_config, write_corpus
from tests.workflows.training.processes import forking
from tests.workflows.training.test_distributed import Run, final_tensors, launch, run_root
from workflows.training.config import TrainConfig
from workflows.training.stall import Place, Standing, behind, stacks
from workflows.training.watchdog import PHASES, STALLED
from workflows.training.worker import work

TIMEOUT_S, STEPS = 8.0, 12


def oversleep(*_: object) -> None:
    time.sleep(600)


def _work(config: TrainConfig, rank: int, port: int, output: Path, nap: int | None) -> None:
    """A worker as torchrun starts it; rank 1 falls asleep when it has passed `nap` packs."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with output.open("w", buffering=1) as stream:
        sys.stdout = sys.stderr = stream
        logging.basicConfig(level=logging.INFO, stream=stream, force=True)
        if nap is not None and rank == 1:
            from oneflow_core.objectives import OneFlowObjective

            score, passed = OneFlowObjective.score, iter(range(nap))
            OneFlowObjective.score = lambda *given: (  # type: ignore[method-assign]
                score(*given) if next(passed, None) is not None else oversleep()
            )
        work(config)


def started(config: TrainConfig, directory: Path, nap: int | None = None) -> Run:
    directory.mkdir()
    context = forking()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs = [directory / f"output-{rank}" for rank in range(2)]
    made = [context.Process(target=_work, args=(config, r, port, outputs[r], nap)) for r in range(2)]
    for process in made:
        process.start()
    return Run(list(made), outputs)


def config_of(corpus: Path, place: Path, **changes: object) -> TrainConfig:
    settings = {"budget__steps": STEPS, "watch__heldout_every": 1000, "data__holdout": 0}
    return tiny_config(corpus, place, **{**settings, "compute__stall_timeout_s": TIMEOUT_S, **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("corpus") / "tiny"
    write_corpus(base)
    return base


def test_stalls_are_told_and_the_run_goes_on_after_them(corpus: Path, tmp_path: Path) -> None:
    """Both runs at once, as most of their time is waiting."""
    asleep, stopped = config_of(corpus, tmp_path / "asleep"), config_of(corpus, tmp_path / "stopped", seed=1)
    stopped = stopped.model_copy(update={"budget": stopped.budget.model_copy(update={"steps": 100_000})})
    sleeping, halting = started(asleep, tmp_path / "one", nap=7), started(stopped, tmp_path / "two")
    try:
        while not list((tmp_path / "stopped").glob("*/commits/*.json")):
            assert all(process.is_alive() for process in halting.processes)
            time.sleep(0.02)
        victim = halting.processes[1]
        os.kill(victim.pid or 0, signal.SIGSTOP)
        for process in [*sleeping.processes, halting.processes[0]]:
            process.join(300)
            assert process.exitcode == STALLED
        assert victim.is_alive()
    finally:
        for process in [*sleeping.processes, *halting.processes]:
            process.kill()
            process.join()

    # Seven packs: one for each of the steps 0 to 6, so that rank 1 sleeps in step 7.
    place = run_root(asleep) / "stalls" / "step-000000007"
    waits, sleeps = ((place / f"rank-0000{rank}.txt").read_text() for rank in (0, 1))
    assert "in oversleep" in sleeps and "time.sleep(600)" in sleeps and "thread MainThread" in sleeps
    assert "in oversleep" not in waits and "torch/distributed" in waits
    assert "forward of step 7" in sleeps
    assert (place / "summary.txt").read_text().endswith("not arrived: rank 1")
    assert "not arrived: rank 1" in sleeping.outputs[0].read_text()

    [silent] = (run_root(stopped) / "stalls").iterdir()
    summary = (silent / "summary.txt").read_text()
    assert f"rank 1 (pid {victim.pid} on {socket.gethostname()}): wrote nothing" in summary
    assert summary.endswith("not arrived: rank 1")
    assert [path.name for path in silent.glob("rank-*.txt")] == ["rank-00000.txt"]

    undisturbed = config_of(corpus, tmp_path / "undisturbed")
    calm = {"compute": asleep.compute.model_copy(update={"stall_timeout_s": 600.0})}
    for number, config in enumerate((asleep, undisturbed)):
        (tmp_path / f"again-{number}").mkdir()
        output = launch(config.model_copy(update=calm), tmp_path / f"again-{number}", 2).finish()
        assert ("going on after step 4" in output) == (config is asleep)
    assert final_tensors(asleep) == final_tensors(undisturbed)


def standing(rank: int, step: int, phase: str, collective: bool) -> Standing:
    return Standing(rank, "host", 1, step, phase, 9.0, Place("file.py:1 f", collective))


def test_who_has_not_arrived() -> None:
    """Every case worked out by hand."""
    waits = standing(0, 5, "forward", True)
    assert behind([waits, standing(2, 5, "forward", True)], 3, PHASES) == [1]
    assert behind([waits, standing(1, 5, "data", False)], 2, PHASES) == [1]
    assert behind([standing(0, 5, "agree", True), standing(1, 5, "checkpoint", True)], 2, PHASES) == [1]
    assert behind([standing(0, 6, "agree", True), standing(1, 5, "optimiser", True)], 2, PHASES) == [1]
    assert behind([waits, standing(1, 5, "forward", False)], 2, PHASES) == [1]
    assert behind([waits, standing(1, 5, "forward", True)], 2, PHASES) == []
    assert behind([replace(waits, place=Place("f", False))], 1, PHASES) == [0]


def test_stacks_are_of_all_threads_but_the_one_that_asks() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="somebody")
    told: list[str] = []
    asking = threading.Thread(target=lambda: told.append(stacks()), name="asking")
    thread.start()
    asking.start()
    asking.join()
    release.set()
    thread.join()
    assert "thread somebody" in told[0] and "thread asking" not in told[0]
    assert told[0].startswith("thread MainThread")
    assert "test_stacks_are_of_all_threads" in told[0]
    assert json.dumps(told)
