import json
import subprocess
import sys
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


def test_a_device_is_for_those_that_can_use_one() -> None:
    done = CliRunner().invoke(app, ["bench", "packing", "--device", "cuda"])
    assert "packing measures the CPU alone" in str(done.exception)


def test_what_measures_the_method_imports_no_platform() -> None:
    modules = (
        "train_step",
        "sample",
        "mfu",
        "packing",
        "vocab_loss",
        "targets",
        "peer_transfusion",
        "transfusion",
        "plain",
    )
    platform = ("ray", "mlflow", "typer", "pydantic", "boto3", "fsspec", "pyarrow")
    code = "; ".join(f"import workflows.bench.{module}" for module in modules)
    code += f"; import sys; print([name for name in {platform} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mappings_are_told_line_by_line() -> None:
    extra = {"share": 0.25, "all": {"a": {"x": 1.0, "n": 2}, "b": {"x": 3.0}}, "sizes": {"n": 7}, "none": {}}
    result = Result("x", "s", [1.0], [2.0], extra=extra, other_runs={"floor": [4.0]})
    lines = result.summary()
    assert lines["share"] == "0.25"
    assert lines["all a"] == "x 1, n 2"
    assert lines["sizes"] == "n 7"
    assert "none" not in lines
    assert result.to_json()["runs"] == {"ours": [1.0], "peer": [2.0], "floor": [4.0]}
    assert result.to_json()["all"] == extra["all"]
