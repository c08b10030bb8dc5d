"""A thousand bad inputs, ingested and read for encoding: nothing crashes or hangs, all is counted, neighbours stay."""

import io
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workflows.corpus.inputs import corpus, pairs, png, tar
from tests.workflows.corpus.mutations import Mutant, mutants, pictures, tree_mutants
from workflows.corpus.chunks import Chunk, Job
from workflows.corpus.config import CorpusConfig
from workflows.corpus.filling import filled
from workflows.corpus.ingest import ingest_unit, reports
from workflows.corpus.parts import read_part
from workflows.corpus.quarantine import Wanted, export, summary
from workflows.corpus.units import Unit, list_units

HANG_S = 60.0
"""10 s are asked, and all thousand take some 15; a machine that stands still for a moment is no hang."""
COUNTS = {"pictures": 400, "tars": 150, "tables": 150, "lines": 100, "bytes": 100, "trees": 100}
"""How many mutants of each kind: a thousand in all."""
KINDS = ("llava", "vqa", "coco", "mmc4", "obelics")
SAID = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "!"}]
TREES: dict[str, Any] = {
    "llava": [{"id": i, "image": f"{i}.png", "conversations": SAID} for i in range(3)],
    "vqa": {
        "questions": [
            {"question_id": i, "question": "?", "image": f"{i}.png", "answers": ["a"]} for i in range(3)
        ]
    },
    "coco": {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "caption": f"c{i}"} for i in range(3)],
    },
    "mmc4": {
        "text_list": ["a", "b"],
        "image_info": [{"image_name": "0.png", "matched_text_index": 1}],
        "similarity_matrix": [[0.1, 0.2]],
    },
}
LINE = {"id": "x", "text": "a caption", "image": "0.png", "segments": None}


def table(rows: Sequence[dict[str, Any]], **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), stream, row_group_size=2, **options)
    return stream.getvalue()


def packed(members: list[tuple[str, bytes]], folder: Path) -> bytes:
    return tar(folder / "packed.tar", members).read_bytes()


def write_pictures(raw: Path) -> None:
    """Tars of eight mutants each, every one between two good pictures."""
    made = list(mutants(pictures(), COUNTS["pictures"], 1))
    for number in range(0, len(made), 8):
        members = pairs(0, 1)
        for place, mutant in enumerate(made[number : number + 8]):
            members += [(f"m{place}.{mutant.suffix}", mutant.data), (f"m{place}.txt", b"a mutant")]
            members += pairs(place + 1, 1)
        tar(raw / "pictures" / f"{number:04d}.tar", members)


def write_files(raw: Path, kind: str, suffix: str, made: Iterator[Mutant]) -> None:
    (raw / kind).mkdir(parents=True, exist_ok=True)
    for number, mutant in enumerate(made):
        (raw / kind / f"{number:04d}.{suffix}").write_bytes(mutant.data)


def write_lines(raw: Path) -> None:
    """Rows of JSON of which the middle one is bad: its bytes, or what stands in it."""
    half, good = COUNTS["lines"] // 2, json.dumps({"text": "a neighbour"}).encode()
    made = [*mutants([("", json.dumps(LINE).encode())], half, 4), *tree_mutants([("", LINE)], half, 5)]
    lines = (Mutant("", m.what, b"\n".join([good, m.data, good])) for m in made)
    write_files(raw, "lines", "jsonl", lines)


def write(raw: Path) -> None:
    write_pictures(raw)
    write_files(raw, "tars", "tar", mutants([("tar", packed(pairs(0, 3), raw))], COUNTS["tars"], 2))
    rows = [{"image": {"bytes": png(i), "path": "x"}, "text": f"row {i}"} for i in range(6)]
    tables = [("parquet", table(rows)), ("parquet", table(rows, compression="none", use_dictionary=False))]
    write_files(raw, "tables", "parquet", mutants(tables, COUNTS["tables"], 3))
    write_lines(raw)
    each, texts = COUNTS["bytes"] // len(KINDS), {k: json.dumps(t).encode() for k, t in TREES.items()}
    texts["obelics"] = table([{"images": [None, "0.png"], "texts": ["a", None], "metadata": "[]"}] * 4)
    for kind, data in texts.items():
        write_files(raw, kind, kind_suffix(kind), mutants([("", data)], each, 6))
    each = COUNTS["trees"] // len(TREES)
    for kind, tree in TREES.items():
        write_files(raw, f"{kind}-trees", "json", tree_mutants([("", tree)], each, 7))


def kind_suffix(kind: str) -> str:
    return "parquet" if kind == "obelics" else "json"


def config_of(root: Path) -> CorpusConfig:
    """Sources over all that was written; images that rows name are beside them."""
    raw = root / "raw"
    formats = {"pictures": "webdataset", "tars": "webdataset", "tables": "parquet", "lines": "jsonl"}
    formats |= {name: name for name in KINDS} | {f"{name}-trees": name for name in TREES}
    sources = [
        {"name": name, "format": kind, "urls": [f"{raw}/{name}/*"], "images": [f"{raw}/images"]}
        for name, kind in formats.items()
    ]
    for source in sources[:3]:
        del source["images"]
    return corpus(root, *sources, limits={"image_pixels": 4_000_000}, duplicates={"exact": "off"})


_opened: tuple[CorpusConfig, list[Unit]]


def open_corpus(root: Path) -> None:
    """Once in the worker."""
    global _opened
    config = config_of(root)
    _opened = config, list_units(config)


def ingest_and_decode(number: int) -> None:
    """Ingest one unit and read its pictures again as encode does: each is decoded or refused, nothing is raised."""
    config, units = _opened
    ingest_unit(config, units[number])
    (report,) = reports(config, [units[number]])
    images = sorted({s for row in read_part(report.url, ["images"])["images"].to_pylist() for s in row})
    chunk = Chunk(("latents",), (64, 64), bytes.fromhex("".join(images)))
    if images:
        (done,) = filled(config, Job(report.unit, report.sha256, (chunk,)))
        assert all(refused.reason != "image changed" for refused in done.refused)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CorpusConfig]:
    """All of it ingested, in a process that a crash would end and within a time that a hang would pass."""
    root = tmp_path_factory.mktemp("fuzz")
    write(root / "raw")
    (root / "raw" / "images").mkdir()
    for i in range(3):
        (root / "raw" / "images" / f"{i}.png").write_bytes(png(i))
    config = config_of(root)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, open_corpus, (root,)) as pool:
        pool.submit(int).result(120)
        for number in range(len(list_units(config))):
            pool.submit(ingest_and_decode, number).result(HANG_S)
    return root, config


def test_every_account_closes(fuzzed: tuple[Path, CorpusConfig]) -> None:
    """`reports` raises where one does not."""
    _, config = fuzzed
    found = reports(config, list_units(config))
    assert sum(COUNTS.values()) == 1000
    assert len(found) == COUNTS["pictures"] // 8 + sum(COUNTS.values()) - COUNTS["pictures"]
    assert sum(unit.account.kept for unit in found) > 500
    assert sum(sum(unit.account.refused.values()) for unit in found) > 500


def test_good_neighbours_survive(fuzzed: tuple[Path, CorpusConfig]) -> None:
    _, config = fuzzed
    for report in reports(config, list_units(config)):
        documents = [json.loads(row) for row in read_part(report.url, ["document"])["document"].to_pylist()]
        keys = {document["doc_id"].rpartition("/")[2] for document in documents}
        if report.unit.source == "pictures":
            assert {f"{i:05d}" for i in range(9)} <= keys, report.unit.name
            assert report.account.read == 17, report.unit.name
        if report.unit.source == "lines":
            texts = [s.get("text") for d in documents for s in d["segments"]]
            assert texts.count("a neighbour") == 2, report.unit.name


def test_what_was_refused_can_be_listed_and_exported(
    fuzzed: tuple[Path, CorpusConfig], tmp_path: Path
) -> None:
    root, config = fuzzed
    refused = Counter[str]()
    for unit in reports(config, list_units(config)):
        refused.update(unit.account.refused)
    listed = summary(str(root), Wanted())
    by_reason = Counter[str]()
    for (_, _, reason), count in listed.items():
        by_reason[reason] += count
    assert by_reason == refused and all(reason.strip() for reason in refused) and len(refused) < 80
    assert export(str(root), str(tmp_path / "all.parquet"), Wanted()) == refused.total()
    assert pq.read_table(tmp_path / "all.parquet").num_rows == refused.total()
