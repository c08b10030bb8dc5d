"""Two real models behind Ray Serve, one after the other, a real MLflow server and outputs in a real bucket."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import torch
from mlflow import MlflowClient
from PIL import Image

from oneflow_core.model_directory import copy
from oneflow_core.model_source import ASSETS
from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.conftest import RunningStack
from workflows.config import load
from workflows.corpus.cluster import cluster
from workflows.evaluation.run import run
from workflows.storage import list_urls

FEW = [
    *(f"items.{n}=2" for n in ("t2i_single", "t2i_multi", "caption_single", "caption_multi", "vqa")),
    *("items.story=1", "items.no_prompt=1", "items.combinations=0", "gate=null", "requests.image.steps=6"),
    "compare.figures=[caption/single/recall]",
]


def test_a_served_model_against_one_that_is_measured_beside_it(stack: RunningStack, tmp_path: Path) -> None:
    half, out = tmp_path / "half", tmp_path / "out"
    copy(ASSETS, half, torch.float16)
    config = load("evaluate", "shapes", [*FEW, f"resume={stack.url('evaluations')}"])
    lines: list[str] = []
    with cluster():
        report = run(config, "embedded", out=out, against=str(half), say=lines.append)
    assert report.failed == 0 and list_urls(stack.url("evaluations")) == []
    assert sum("starting a deployment" in line for line in lines) == 2

    # What a deployment makes is what the pipeline makes of the same prompt and seed.
    pipeline = OneFlowPipeline.from_pretrained("embedded")
    rows = {i.id: (i, o) for i, o in zip(report.judged.items, report.judged.outputs, strict=True)}
    item, output = next(row for row in rows.values() if row[0].task == "t2i/single" and not row[0].control)
    (made,) = pipeline([Prompt(item.prompt, "image")], seeds=[item.seed], steps=6, max_images=1)  # type: ignore[arg-type]
    (shown,) = (np.asarray(Image.open(image), int) for image in map(io.BytesIO, output.images))
    assert np.abs(shown - np.asarray(made.images[0], int)).max() <= 2

    assert report.comparison is not None and report.comparison.against["name"] == str(half)
    row = next(r for r in report.comparison.rows if r.name == "caption/single/recall")
    assert not row.reason and row.difference.count == 2
    assert {file.name for file in out.iterdir()} >= {
        "items.jsonl", "metrics.json", "scores.json", "table.json", f"{report.comparison.file_stem}.png"
    }  # fmt: skip

    client = MlflowClient()
    experiment = client.get_run(report.run_id).info.experiment_id
    table = client.load_table(experiment, "evaluation/shapes/table.json", run_ids=[report.run_id])
    assert sorted(table["id"]) == sorted(rows)
    asked = table[table["id"] == item.id].iloc[0]
    assert asked["prompt"] == item.prompt[0] and asked["exact"] in (0, 1)
    for column in ("prompt_image", "output_image"):
        assert {cell["type"] for cell in table[column]} == {"image"}, (
            "the page takes the whole column for pictures"
        )
    picture = client.download_artifacts(report.run_id, asked["output_image"]["filepath"], str(tmp_path))
    assert np.array_equal(np.asarray(Image.open(picture).convert("RGB"), int), shown)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    told = [file for file in out.rglob("*") if file.suffix in (".json", ".jsonl")]
    assert told and all(secret not in file.read_text("utf-8") for file in told)
    assert json.loads((out / "metrics.json").read_text())["comparison"]["against"]["name"] == str(half)
