"""Every example of a source in docs/data-engineer.md, as it stands there, over files as it describes them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.workflows.corpus.inputs import corpus, jsonl, png, tar
from tests.workflows.corpus.sources.conftest import Web
from tests.workflows.corpus.sources.reading import seen
from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources import Draft
from workflows.corpus.units import list_units, opened

PAGE = Path(__file__).parents[4] / "docs" / "data-engineer.md"
SECTION = PAGE.read_text(encoding="utf-8").partition("## Add a source")[2].partition("\n## ")[0]
EXAMPLES: dict[str, dict[str, Any]] = {
    source["format"]: source
    for block in re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
    for source in yaml.safe_load(block)
}
IMAGE = png(1)
PAIR = [(IMAGE, "auto"), ("said", "auto")]
ASKED = [(IMAGE, "prompt"), ("asked?", "prompt"), ("said", "target")]


def webdataset(raw: Path, web: Web) -> list[Any]:
    about = {"title": "sa", "tags": ["i", "d"], "license": "MIT", "author": "A", "url": "https://x/1"}
    for name in ("00000", "00001"):
        tar(raw / "photos" / f"{name}.tar", [("k.jpg", IMAGE), ("k.json", json.dumps(about).encode())])
    return [(IMAGE, "auto"), ("sa: i, d", "auto")]


def folder(raw: Path, web: Web) -> list[Any]:
    (raw / "drawings").mkdir(parents=True)
    (raw / "drawings" / "k.webp").write_bytes(IMAGE)
    (raw / "drawings" / "k.txt").write_text("said")
    return PAIR


def rows(raw: Path, web: Web) -> list[Any]:
    jsonl(raw / "questions-1.jsonl", [{"q": "asked?", "a": "said", "file": "x.png"}])
    tar(raw / "questions-1.tar", [("x.png", IMAGE)])
    return ASKED


def parquet(raw: Path, web: Web) -> list[Any]:
    (raw / "web").mkdir(parents=True)
    (web.folder / "a.png").write_bytes(IMAGE)
    table = pa.Table.from_pylist([{"URL": f"{web.url}/a.png", "TEXT": "said", "LICENSE": "MIT"}])
    pq.write_table(table, raw / "web" / "a.parquet")
    return PAIR


def huggingface(raw: Path, web: Web) -> list[Any]:
    import datasets

    one = datasets.Dataset.from_dict({"image": [{"bytes": IMAGE, "path": None}], "text": ["said"]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(raw / "hub")
    return PAIR


def mmc4(raw: Path, web: Web) -> list[Any]:
    info = [{"image_name": "a.png", "matched_text_index": 0}]
    jsonl(raw / "mmc4" / "docs_shard_0_v2.jsonl", [{"text_list": ["said"], "image_info": info, "url": "u"}])
    tar(raw / "mmc4" / "images.tar", [("a.png", IMAGE)])
    return PAIR


def obelics(raw: Path, web: Web) -> list[Any]:
    (raw / "obelics" / "images").mkdir(parents=True)
    (raw / "obelics" / "images" / "a.png").write_bytes(IMAGE)
    table = pa.Table.from_pylist([{"images": ["https://x/y/a.png", None], "texts": [None, "said"]}])
    pq.write_table(table, raw / "obelics" / "a.parquet")
    return PAIR


def coco_images(raw: Path, split: str, name: str) -> None:
    (raw / "coco" / split).mkdir(parents=True)
    (raw / "coco" / split / name).write_bytes(IMAGE)


def llava(raw: Path, web: Web) -> list[Any]:
    coco_images(raw, "train2017", "1.jpg")
    said = [{"from": "human", "value": "<image>\nasked?"}, {"from": "gpt", "value": "said"}]
    (raw / "llava").mkdir()
    row = {"id": "1", "image": "coco/train2017/1.jpg", "conversations": said}
    (raw / "llava" / "llava_instruct.json").write_text(json.dumps([row]))
    return ASKED


def vqa(raw: Path, web: Web) -> list[Any]:
    coco_images(raw, "train2014", "COCO_train2014_000000000007.jpg")
    asked = {"question_id": 1, "image_id": 7, "question": "asked?"}
    questions = {"data_subtype": "train2014", "questions": [asked]}
    answers = [{"question_id": 1, "answers": [{"answer": a} for a in ("no", "said", "said")]}]
    (raw / "vqa").mkdir()
    (raw / "vqa" / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps(questions))
    (raw / "vqa" / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": answers}))
    return ASKED


def coco(raw: Path, web: Web) -> list[Any]:
    coco_images(raw, "train2017", "000000000007.jpg")
    lists = {
        "licenses": [{"id": 1, "name": "MIT"}],
        "images": [{"id": 7, "file_name": "000000000007.jpg", "license": 1}],
        "annotations": [{"id": 5, "image_id": 7, "caption": "said"}],
    }
    (raw / "coco" / "annotations").mkdir()
    (raw / "coco" / "annotations" / "captions_train2017.json").write_text(json.dumps(lists))
    return PAIR


WRITERS: dict[str, Callable[[Path, Web], list[Any]]] = {
    f.__name__: f for f in (webdataset, folder, parquet, huggingface, mmc4, obelics, llava, vqa, coco)
} | {"jsonl": rows}


def test_every_format_has_an_example() -> None:
    formats = set(get_args(SourceConfig.model_fields["format"].annotation))
    assert formats == set(EXAMPLES) == set(WRITERS)
    assert all(f"| `{name}` |" in SECTION for name in formats)


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_an_example_works(kind: str, tmp_path: Path, web: Web) -> None:
    raw = tmp_path / "root" / "raw"
    raw.mkdir(parents=True)
    expected = WRITERS[kind](raw, web)
    config = corpus(tmp_path / "root", EXAMPLES[kind])
    for unit in list_units(config):
        with opened(config, unit) as found:
            (draft,) = list(found)
        assert isinstance(draft, Draft) and seen(draft) == expected
        assert draft.licence == ("MIT" if "{" in EXAMPLES[kind]["licence"] else EXAMPLES[kind]["licence"])
