"""Units as tasks of Ray: a worker that dies over one leaves the others, and the build, alone."""

import os
import signal
from pathlib import Path

import pytest

from oneflow_core.data.manifest import Account
from tests.workflows.corpus.inputs import corpus, pairs, tar
from workflows.corpus import ingest
from workflows.corpus.config import CorpusConfig
from workflows.corpus.parts import read_part
from workflows.corpus.unit_tasks import DEATHS, Died, each
from workflows.corpus.units import Unit, list_units
from workflows.errors import OneFlowError

pytestmark = pytest.mark.usefixtures("local_ray")


def units(tmp_path: Path, count: int) -> tuple[CorpusConfig, list[Unit]]:
    for number in range(count):
        tar(tmp_path / "raw" / f"{number}.tar", pairs(10 * number, 2))
    config = corpus(tmp_path)
    return config, list_units(config)


def test_a_worker_that_dies_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    _, three = units(tmp_path, 3)
    folder = str(tmp_path)

    def work(unit: Unit) -> str:
        # Defined here, so that it travels by value: workers may not import the tests.
        path = os.path.join(folder, unit.name + ".tries")
        with open(path, "a") as stream:
            stream.write("x")
        if unit.name == "0.tar" or (unit.name == "1.tar" and os.path.getsize(path) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return unit.name

    found = {unit.name: result for unit, result in each(three, work)}
    assert found["1.tar"] == "1.tar" and found["2.tar"] == "2.tar"
    assert isinstance(found["0.tar"], Died) and "WorkerCrashedError" in found["0.tar"].cause
    assert [(tmp_path / f"{n}.tar.tries").stat().st_size for n in range(3)] == [DEATHS, 2, 1]


def test_an_error_of_the_work_is_raised(tmp_path: Path) -> None:
    _, one = units(tmp_path, 1)

    def work(unit: Unit) -> None:
        raise OneFlowError("the store", "it is down", "start it")

    with pytest.raises(OneFlowError, match="the store: it is down; start it"):
        list(each(one, work))


def test_a_file_over_which_workers_die_is_refused_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = units(tmp_path, 2)
    real = ingest.ingest_unit

    class Deadly(ingest._Ingest):
        def __call__(self, unit: Unit) -> Account:
            if unit.name == "0.tar":
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self.config, unit)

    monkeypatch.setattr(ingest, "_Ingest", Deadly)
    report = ingest.run(config)
    first, second = report.units
    assert first.account == Account(1, 0, {"worker died": 1}) and second.account == Account(2, 2)
    assert first.sha256 != second.sha256
    (row,) = read_part(first.quarantine).to_pylist()
    assert row["key"] == "0.tar" and b"WorkerCrashedError" in row["head"]
    monkeypatch.undo()
    again = ingest.run(config)
    assert again.made == 0 and again.reused == 2, "it is not tried again by each build"
