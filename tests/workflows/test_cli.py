import resource
import subprocess
import sys
from pathlib import Path

import pytest

from workflows import cli
from workflows.errors import OneFlowError, Refused, UsageError

ONEFLOW = Path(sys.executable).with_name("oneflow")
HEAVY = ("torch", "ray", "mlflow", "transformers", "diffusers", "pyarrow", "pandas")


def oneflow(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ONEFLOW, *arguments], capture_output=True, text=True, timeout=300)


def test_version() -> None:
    done = oneflow("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("oneflow ")


def test_help_answers_at_once() -> None:
    """Under a second of the processor: what else the machine does is not counted."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert oneflow("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, workflows.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["nothing"], ["--nothing"], ["config", "show"]])
def test_bad_usage_is_2(arguments: list[str]) -> None:
    assert oneflow(*arguments).returncode == 2


def test_bad_config_is_2_and_one_paragraph_without_traceback() -> None:
    done = oneflow("config", "show", "trian/nano")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert 'did you mean "train"' in done.stderr
    assert "Traceback" in oneflow("--debug", "config", "show", "trian/nano").stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OneFlowError("x", "is\nbroken", "mend it"), 1),
        (UsageError("x", "is wrong", "mend it"), 2),
        (Refused("x", "is worse", "mend it"), 3),
    ],
)
def test_errors_become_exit_codes(
    error: OneFlowError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as left:
        cli.main(["anything"])
    assert left.value.code == code
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "mend it" in stderr
