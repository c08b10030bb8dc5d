"""`oneflow models export`: a model leaves the registry as a directory that loads by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.tiny import tiny_parts
from workflows.cli import app, main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(OneFlowPipeline(tiny_parts()).save_pretrained(tmp_path_factory.mktemp("export") / "tiny"))


@pytest.mark.parametrize("half", [False, True])
def test_what_is_exported_loads_and_makes_the_same(model: str, tmp_path: Path, half: bool) -> None:
    out = tmp_path / "exported"
    result = CliRunner().invoke(app, ["models", "export", model, str(out), *(["--half"] * half), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["bytes"] == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    weights = [load_file(Path(root) / "model" / "model.safetensors") for root in (model, out)]
    for name, tensor in weights[0].items():
        kept = weights[1][name]
        assert kept.dtype == (torch.float16 if half else torch.float32)
        torch.testing.assert_close(kept.float(), tensor, rtol=1e-3 if half else 0, atol=1e-6 if half else 0)
    first, second = (OneFlowPipeline.from_pretrained(root) for root in (model, out))
    assert next(second.parts.model.parameters()).dtype == torch.float32
    if not half:
        prompt = [Prompt(("a red circle",), "document")]
        assert first(prompt, seeds=3)[0].trace == second(prompt, seeds=3)[0].trace


def test_a_directory_that_holds_a_model_is_left_alone(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models", "export", model, model])
    assert ended.value.code == 1
    assert "holds a model already" in capsys.readouterr().err
