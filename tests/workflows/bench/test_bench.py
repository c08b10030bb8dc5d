import json
from statistics import median

import pytest
from typer.testing import CliRunner

from tests.conftest import RunningStack
from workflows import storage
from workflows.bench.result import Result
from workflows.cli import app


def test_ratio_is_of_medians() -> None:
    result = Result("x", "s", [1.0, 9.0, 2.0], [4.0, 4.0, 100.0])
    assert result.ratio == 0.5
    assert result.to_json()["runs"] == {"ours": [1.0, 9.0, 2.0], "peer": [4.0, 4.0, 100.0]}


def test_storage_benchmark_prints_the_contracts_keys_and_leaves_nothing(stack: RunningStack) -> None:
    done = CliRunner().invoke(app, ["bench", "storage", "--runs", "2", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert {"name", "ratio", "ours", "peer", "unit", "runs", "machine", "versions"} <= set(told)
    assert len(told["runs"]["ours"]) == len(told["runs"]["peer"]) == 2
    assert told["ratio"] == pytest.approx(median(told["runs"]["ours"]) / median(told["runs"]["peer"]))
    assert storage.list_urls(stack.url("bench")) == []


def test_unknown_benchmark_lists_the_known() -> None:
    done = CliRunner().invoke(app, ["bench", "nothing"])
    assert "storage" in str(done.exception)
