import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ONEFLOW = Path(sys.executable).with_name("oneflow")


def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ONEFLOW, "submit", *arguments], capture_output=True, text=True, timeout=120)


def test_render_prints_one_manifest() -> None:
    done = submit("corpus-shapes", "--render", "--set", "kubernetes.image=registry/x:1")
    assert done.returncode == 0
    value = yaml.safe_load(done.stdout)
    head = value["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert (value["kind"], head["image"]) == ("RayJob", "registry/x:1")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["train-shapes"], 2, "--address"),
        (["train-shapes", "--address", "localhost:1"], 2, "http://"),
        (["train-shapes", "--address", "http://127.0.0.1:9"], 1, "nothing answers"),
        (["serve-shapes", "--address", "http://127.0.0.1:9"], 2, "--render"),
        (["tarin-shapes", "--render"], 2, 'did you mean "train-shapes"'),
    ],
)
def test_what_cannot_be_submitted_is_told(arguments: list[str], code: int, told: str) -> None:
    done = submit(*arguments)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
