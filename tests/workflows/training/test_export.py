"""`oneflow models export`: a model leaves the registry as a directory that loads by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from oneflow_core.model import ModelConfig, OneFlowModel
from oneflow_core.model_directory import ModelDirectoryError, load, save
from oneflow_core.pipeline import OneFlowPipeline, Prompt
from oneflow_core.weights import HeldWeights, digest, weight_files
from tests.tiny import tiny_parts
from workflows.cli import app, main
from workflows.training.best import write_best
from workflows.training.parallel import Worker


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


def test_above_a_size_weights_lie_in_several_files_as_transformers_writes_them(tmp_path: Path) -> None:
    parts = tiny_parts()
    whole, cut = save(parts, tmp_path / "whole"), save(parts, tmp_path / "cut", shard_bytes=20_000)
    files = weight_files(cut / "model")
    assert weight_files(whole / "model") == [whole / "model" / "model.safetensors"]
    index = json.loads((cut / "model" / "model.safetensors.index.json").read_text())
    held = {file.name: load_file(file) for file in files}
    assert len(files) > 5 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert {n: name for name, file in held.items() for n in file} == index["weight_map"]
    sizes = [sum(t.nbytes for t in file.values()) for file in held.values()]
    assert all(size <= 20_000 or len(file) == 1 for size, file in zip(sizes, held.values(), strict=True))
    assert sum(sizes) == index["metadata"]["total_size"]
    theirs = load_file(whole / "model" / "model.safetensors")
    assert all(torch.equal(t, theirs[n]) for file in held.values() for n, t in file.items())

    loaded, version = load(cut, device="cpu", dtype=torch.float32)
    assert version == digest(files)[:12]
    assert all(torch.equal(t, theirs[n]) for n, t in loaded.model.state_dict().items())
    result = CliRunner().invoke(app, ["models", "export", str(cut), str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "again" / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()

    data = bytearray(files[2].read_bytes())
    data[-1] ^= 1
    files[2].write_bytes(bytes(data))
    with pytest.raises(ModelDirectoryError, match="not the bytes"):
        load(cut, device="cpu", dtype=torch.float32)
    files[2].unlink()
    with pytest.raises(ModelDirectoryError, match=files[2].name):
        load(cut, device="cpu", dtype=torch.float32)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    parts = tiny_parts()
    held = parts.model.state_dict()
    name = next(iter(held))
    for wrong in ({**held, name: held[name][:1]}, {n: t for n, t in held.items() if n != name}):
        with pytest.raises(ModelDirectoryError, match=f"weights: {name} is"):
            save(parts, tmp_path / "model", HeldWeights(wrong))
    assert not (tmp_path / "model").exists()


LARGE = ModelConfig(
    vocab_size=4096, width=1024, layers=8, heads=8, kv_heads=8, ffn=2560, latent_channels=16, feature_dim=16
)
EXPORTING = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from oneflow_core.model import OneFlowModel
from oneflow_core.model_directory import copy, save
from tests.tiny import tiny_parts
from tests.workflows.training.test_export import LARGE
from workflows.memory import forget_peak, peak_resident
from workflows.training.best import load_best
from workflows.training.export import write_model
root, out = sys.argv[1], Path(sys.argv[2])
parts = tiny_parts()
with torch.device("meta"):
    parts = replace(parts, model=OneFlowModel(LARGE))
save(tiny_parts(), out / "warm")
copy(out / "warm", out / "warmer")
forget_peak()
before = peak_resident()
write_model(parts, load_best(root)[1], out / "model")
exported = peak_resident() - before
copy(out / "model", out / "copy", torch.float16)
print(exported >> 20, (peak_resident() - before) >> 20)
"""


def test_export_holds_one_tensor_at_a_time(alone: Worker, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in OneFlowModel(LARGE).named_parameters()}
    held = {name: torch.full(shape, float(n)) for n, (name, shape) in enumerate(shapes.items())}
    for tensor in held.values():
        tensor.view(-1)[::500] = torch.arange(float(len(tensor.view(-1)[::500])))
    size = sum(t.nbytes for t in held.values())
    largest = max(t.nbytes for t in held.values())
    assert size > 400e6 and largest < 24e6
    write_best(str(tmp_path / "run"), 10, 1.0, held)
    told = subprocess.run(
        [sys.executable, "-c", EXPORTING, str(tmp_path / "run"), str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    exported, copied = map(int, told.stdout.split())
    print(f"{size >> 20} MiB of weights: export grew by {exported} MiB, a copy of it to {copied} MiB")
    assert max(exported, copied) < 150
    written = load_file(tmp_path / "out" / "model" / "model" / "model.safetensors")
    assert written.keys() == held.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in held.items())
