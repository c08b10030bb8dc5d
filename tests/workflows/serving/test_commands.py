"""`oneflow generate` with a tiny model: what it prints and leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from oneflow_core.pipeline import OneFlowPipeline
from oneflow_core.shapes import examine
from oneflow_core.shapes.grammar import parse
from oneflow_core.shapes.scores import score_reading
from tests.tiny import tiny_parts
from workflows.cli import app, main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(OneFlowPipeline(tiny_parts()).save_pretrained(tmp_path_factory.mktemp("command") / "tiny"))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (80, 50), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_a_prompt_makes_an_image_file_and_a_trace(model: str, tmp_path: Path) -> None:
    out = tmp_path / "made"
    arguments = ["generate", model, "--prompt", "a red circle", "--out", str(out), "--steps", "4", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["segments"] == [{"type": "image", "file": str(out / "image-0.png")}]
    assert Image.open(out / "image-0.png").size == (64, 64)
    trace = json.loads((out / "trace.json").read_text())
    assert trace["trace"]["passes"] == 4
    assert trace["model"]["run_id"] == "run-1"


def test_without_a_model_the_one_in_the_package_is_taken(tmp_path: Path) -> None:
    out = tmp_path / "made"
    result = CliRunner().invoke(app, ["generate", "--prompt", "a red circle", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["model"]["name"] == "embedded"
    made = examine(np.asarray(Image.open(out / "image-0.png").convert("RGB")))
    score = score_reading(parse("a red circle") or [], made)
    assert (score.colour, score.shape, score.count) == (1, 1, 1)


def test_the_same_seed_gives_the_same_file(model: str, tmp_path: Path) -> None:
    made = []
    for seed, name in (("1", "a"), ("1", "b"), ("2", "c")):
        arguments = ["generate", model, "--prompt", "a", "--seed", seed, "--out", str(tmp_path / name)]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        made.append((tmp_path / name / "image-0.png").read_bytes())
    assert made[0] == made[1] != made[2]


def test_an_image_is_described(model: str, picture: str, tmp_path: Path) -> None:
    arguments = ["generate", model, "--image", picture, "--out", str(tmp_path / "out"), "--seed", "6"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (document,) = json.loads((tmp_path / "out" / "trace.json").read_text())["segments"] or [{"text": ""}]
    assert document["text"] in result.stdout
    assert list((tmp_path / "out").glob("*.png")) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "nothing is given"),
        (["--prompt", "a", "--target", "video"], 2, "no such target"),
        (["--image", "nothing.png"], 2, "nothing.png"),
        (["--image", __file__], 2, "name an image file that can be read"),
        (["--prompt", "a", "--temperature", "nan"], 2, "temperature"),
    ],
)
def test_bad_usage_is_told(
    arguments: list[str], code: int, says: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate", model, *arguments])
    assert caught.value.code == code
    assert says in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate", "nowhere/at/all", "--prompt", "a"])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert "nowhere/at/all" in error and "no such directory" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--autoscale", "3"], "MIN:MAX"),
        (["--autoscale", "3:1"], "MIN:MAX"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE: it is not set"),
        (["--api-key-env", "SHORT_KEY"], "it holds 5 characters"),
        (["--follow", "30"], "only models:/NAME@ALIAS can be followed"),
    ],
)
def test_options_of_the_server_that_do_not_hold_are_told_before_ray_starts(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHORT_KEY", "12345")
    with pytest.raises(SystemExit) as caught:
        main(["serve", "embedded", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert says in error and "12345" not in error
