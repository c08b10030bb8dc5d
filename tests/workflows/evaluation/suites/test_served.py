"""The command over a real deployment: suites on files, one after the other, judged by the served model and exactly."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_core.shapes import canonical_caption, render, sample_in_split
from workflows.cli import main
from workflows.corpus.cluster import cluster
from workflows.serving.service import serving

from .made import written

CSV = """item_id,text,proposition_id,dependency,category_broad,category_detailed,question_natural_language
a,a large red circle in the middle,1,0,entity,whole,Is there a circle?
a,a large red circle in the middle,2,1,attribute,color,Is there a red circle?
b,broken,1,"5, right",entity,whole,Is it?
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cluster(), serving("embedded") as url:
        yield url


def evaluate(preset: str, address: str, out: Path, capsys: pytest.CaptureFixture[str], **values: Any) -> Any:
    """What `oneflow evaluate --json` says, and the rows of its items."""
    sets = [
        p
        for k, v in values.items()
        for p in ("--set", f"{k.replace('__', '.')}={json.dumps(v, default=str)}")
    ]
    with pytest.raises(SystemExit) as ended:
        main(
            ["evaluate", "embedded", "--suite", preset, "--url", address, "--out", str(out), "--json", *sets]
        )
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    rows = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    return json.loads(said.out.splitlines()[-1]), rows


def test_suites_over_a_deployment(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    scenes = {str(n): sample_in_split(rng, "heldout_random", 1) for n in range(4)}
    for name, scene in scenes.items():
        Image.fromarray(render(scene)).save(images / f"{name}.png")
    captions = written(tmp_path / "captions.json", {n: [canonical_caption(s)] for n, s in scenes.items()})
    given = {"data__captions": captions, "data__images": images}

    found, rows = evaluate("coco-captions", address, tmp_path / "captions", capsys, **given)
    # The embedded model describes its own corpus: far from the captions of other pictures.
    cider = found["figures"]["coco/cider"]
    assert cider["value"] > 2 * cider["controls"]["shuffled"] and cider["count"] == found["items"] == 4
    assert np.mean([row["scores"]["coco/cider"] for row in rows]) == pytest.approx(cider["value"])
    again, _ = evaluate("coco-captions", address, tmp_path / "again", capsys, **given)
    assert again["figures"] == found["figures"] and again["digest"] == found["digest"]
    fewer, _ = evaluate("coco-captions", address, tmp_path / "fewer", capsys, **given, limit=2)
    assert fewer["digest"] != found["digest"] and fewer["items"] == 2

    questions = {
        name: {"imageId": name, "question": f"What colour is the {shown.shape}?", "answer": shown.colour}
        for name, (shown,) in scenes.items()
    }
    asked = {"data__questions": written(tmp_path / "gqa.json", questions), "data__images": images}
    found, _ = evaluate("vqa", address, tmp_path / "vqa", capsys, **asked)
    assert found["figures"]["vqa/gqa_rule"]["value"] >= 75 and "GQA" in found["rules"]["rule"]

    served = {
        "data__questions": written(tmp_path / "q.csv", CSV),
        "judge__kind": "served",
        "images_per_prompt": 2,
    }
    found, rows = evaluate("dpg-bench", address, tmp_path / "dpg", capsys, **served)
    assert found["rules"]["judge"]["model"]["name"] == found["model"]["name"]
    assert "1 prompts were refused" in found["notes"][0] and len(rows) == 2
    assert {row["scores"]["dpg/dpg_rule"] for row in rows} <= {0, 50, 100}
    exact, rows = evaluate(
        "dpg-bench", address, tmp_path / "exact", capsys, **served | {"judge__kind": "shapes"}
    )
    assert exact["figures"]["dpg-shapes/dpg_rule"]["value"] == 100 and exact["digest"] != found["digest"]

    found, _ = evaluate("geneval-shapes", address, tmp_path / "geneval", capsys, limit=12)
    assert found["figures"]["geneval-shapes/single_object"]["value"] >= 0.5

    prompts = written(tmp_path / "prompts.txt", "\n".join(canonical_caption(s) for s in scenes.values()))
    common = {"data__prompts": prompts, "clip__path": "embedded", "features__kind": "embedded"}
    found, _ = evaluate("clip-score", address, tmp_path / "clip", capsys, **common)
    score = found["figures"]["clip-score/siglip_score_percent"]
    assert score["value"] > score["controls"]["shuffled"]
    found, rows = evaluate("coco-fid", address, tmp_path / "fid", capsys, **common, data__references=images)
    figure = found["figures"]["coco-fid/fd_embedded_not_comparable"]
    assert figure["better"] == "lower" and figure["count"] == 4 and figure["value"] > 0
    assert Image.open(io.BytesIO((tmp_path / "fid" / rows[0]["output"][0]["image"]).read_bytes())).size == (
        64,
        64,
    )
