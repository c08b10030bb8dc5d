"""Parquet, OBELICS and Hugging Face datasets: written by pyarrow and by `datasets`, whole and damaged."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.reference import shared
from tests.workflows.corpus.inputs import corpus, png
from tests.workflows.corpus.sources.reading import read, reasons, rows_of, seen
from workflows.corpus.sources import Draft, parquet
from workflows.corpus.units import list_units, opened


def parquet_file(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize("image", ["image", "jpg", "PNG"])
@pytest.mark.parametrize("text", ["text", "caption", "TEXT"])
def test_images_as_bytes_under_usual_names(tmp_path: Path, image: str, text: str) -> None:
    rows = [{image: png(i), text: f"picture {i}", "score": i / 2, "language": "en"} for i in range(3)]
    drafts, refused = read("parquet", parquet_file(tmp_path / "a.parquet", rows))
    assert not refused
    assert [seen(d) for d in drafts] == [[(png(i), "auto"), (f"picture {i}", "auto")] for i in range(3)]
    assert drafts[1].columns["score"] == 0.5 and drafts[1].columns["language"] == "en"


def test_structs_names_and_mapped_columns(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "x.png").write_bytes(png(1))
    rows = [
        {
            "pic": {"bytes": png(0), "path": "a.png"},
            "alt": "zero",
            "rights": "MIT",
            "no": "a",
            "page": "https://p/1",
        },
        {"pic": {"bytes": None, "path": "x.png"}, "alt": "one", "rights": None, "no": "b", "page": None},
        {"pic": None, "alt": "text alone", "rights": "MIT", "no": "a", "page": None},
        {"pic": None, "alt": None, "rights": "MIT", "no": "d", "page": None},
    ]
    drafts, refused = read(
        "parquet",
        parquet_file(tmp_path / "a.parquet", rows),
        columns={"image": "pic", "text": "alt", "licence": "rights", "id": "no"},
        meta={"seen_at": "page"},
        images=[str(tmp_path / "pictures")],
    )
    assert [d.key for d in drafts] == ["a", "b"] and refused == {"key twice": 1, "columns missing": 1}
    assert [d.licence for d in drafts] == ["MIT", "CC0-1.0"]
    assert seen(drafts[1]) == [(png(1), "auto"), ("one", "auto")]
    assert drafts[0].meta == {"seen_at": "https://p/1"} and "pic.path" in drafts[0].columns


def test_questions_conversations_and_templates(tmp_path: Path) -> None:
    rows = [
        {"question": "what?", "answers": ["a cat", "cat", "A cat "], "image": png(0)},
    ]
    drafts, _ = read("parquet", parquet_file(tmp_path / "q.parquet", rows))
    assert seen(drafts[0]) == [(png(0), "prompt"), ("what?", "prompt"), ("a cat", "target")]
    assert json.loads(drafts[0].meta["answers"]) == ["a cat", "cat", "A cat "]
    spoken = [{"images": [png(1)], "texts": [{"user": "Say.", "assistant": "Said."}]}]
    drafts, _ = read(
        "parquet", parquet_file(tmp_path / "c.parquet", spoken), columns={"conversations": "texts"}
    )
    assert seen(drafts[0]) == [(png(1), "prompt"), ("Say.", "prompt"), ("Said.", "target")]
    titled = [{"title": "T", "tags": ["a", "b"], "image": png(2), "lic": "MIT"}]
    drafts, _ = read(
        "parquet", parquet_file(tmp_path / "t.parquet", titled), caption="{title}: {tags}", licence="{lic}"
    )
    assert seen(drafts[0])[1] == ("T: a, b", "auto") and drafts[0].licence == "MIT"


def test_embeddings_are_not_read_and_wrong_types_are_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"image": 5, "text": "t", "embedding": [0.5] * 8}]
    drafts, refused = read("parquet", parquet_file(tmp_path / "a.parquet", rows))
    assert not drafts and refused == {"image name not a string": 1}
    drafts, refused = read("parquet", parquet_file(tmp_path / "b.parquet", [{"text": 5}]))
    assert not drafts and refused == {"text not a string": 1}
    drafts, refused = read("parquet", parquet_file(tmp_path / "c.parquet", [{"n": 1}, {"n": 2}]))
    assert refused == {"columns missing": 2}


def test_text_that_is_no_utf8_costs_its_row(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    drafts, refused = read("parquet", tmp_path / "a.parquet")
    assert [d.key for d in drafts] == ["row-0", "row-2"] and refused == {"row unreadable": 1}


def test_a_damaged_page_costs_its_row_group_and_a_footer_the_file(tmp_path: Path) -> None:
    rows = [{"image": png(i, (64, 64)), "text": f"{i}"} for i in range(40)]
    path = parquet_file(tmp_path / "a.parquet", rows, row_group_size=10, compression="snappy")
    whole = path.read_bytes()
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    damaged = bytearray(whole)
    damaged[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(damaged)
    drafts, refused = read("parquet", path)
    assert [d.key for d in drafts] == [f"row-{i}" for i in (*range(20), *range(30, 40))]
    assert refused == {"row group broken": 1}
    for data in (whole[: len(whole) // 2], whole[:-200] + b"\0" * 200, b"", b"PAR1", b"x" * 5000):
        path.write_bytes(data)
        drafts, refused = read("parquet", path)
        assert not drafts and refused == {"file broken": 1}


def test_a_large_file_is_cut_between_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image": png(i), "text": f"{i}"} for i in range(30)]
    path = parquet_file(tmp_path / "a.parquet", rows, row_group_size=5, compression="none")
    config = corpus(tmp_path, {"name": "s", "format": "parquet", "urls": [str(path)]})
    (whole,) = list_units(config)
    with opened(config, whole) as opened_rows:
        expected = list(opened_rows)
    monkeypatch.setattr(parquet, "SPLIT_BYTES", path.stat().st_size // 4)
    units = list_units(config)
    assert len(units) > 2 and [u.name for u in units] == sorted({u.name for u in units})
    assert len({u.stem for u in units} | {u.part(config) for u in units}) == 2 * len(units)
    found, digests = [], []
    for unit in units:
        with opened(config, unit) as opened_rows:
            found += list(opened_rows)
            digests.append(opened_rows.sha256())
    assert found == expected and len(set(digests)) == len(units)
    assert sum(u.size for u in units) > path.stat().st_size * 0.9
    # The digest of a unit is of its own row groups: another one's change leaves it.
    changed = bytearray(path.read_bytes())
    last = pq.ParquetFile(path).metadata.row_group(5).column(0)
    changed[(last.dictionary_page_offset or last.data_page_offset) + last.total_compressed_size - 3] ^= 1
    path.write_bytes(changed)
    again = []
    for unit in list_units(config):
        with opened(config, unit) as opened_rows:
            list(opened_rows)
            again.append(opened_rows.sha256())
    assert again[:-1] == digests[:-1] and again[-1] != digests[-1]


def test_img2dataset_tables_name_urls(tmp_path: Path) -> None:
    """Its Parquet is a table of URLs, which lead nowhere here: each row is there, none has an image."""
    table = next(shared("img2dataset_output").glob("webdataset_jpg256/*.parquet"))
    rows = pq.read_table(table).to_pylist()
    drafts, refused = read("parquet", table, root=str(tmp_path), fetch={"retries": 0, "timeout_seconds": 2})
    assert len(drafts) + refused.total() == len(rows)
    assert all(reasons(d) == ["fetch failed"] for d in drafts) and drafts[0].columns["similarity"]


def obelics_row(images: list[Any], texts: list[Any], **about: Any) -> dict[str, Any]:
    metadata = [None if i is None else {"src": i, "alt_text": "alt"} for i in images]
    general = {"url": "https://page/1?token=abc", "warc_filename": "w.gz", "language": "en"}
    return {
        "images": images,
        "texts": texts,
        "metadata": json.dumps(metadata),
        "general_metadata": json.dumps(general),
        **about,
    }


def test_obelics(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "b.png").write_bytes(png(2))
    rows = [
        obelics_row([None, "https://x/a/b.png?w=3", None], ["first", None, "last"]),
        obelics_row([None, "https://x/a/gone.png"], ["first", None]),
        obelics_row([None, None], ["first", None]),
        obelics_row(["https://x/b.png"], ["both"]),
        obelics_row([None], ["a", "b"]),
    ]
    path = parquet_file(tmp_path / "o.parquet", rows)
    drafts, refused = read("obelics", path, images=[str(tmp_path / "kept")])
    assert refused == {"lists not parallel": 3}
    assert seen(drafts[0]) == [("first", "auto"), (png(2), "auto"), ("last", "auto")]
    assert drafts[0].meta == {"url": "https://page/1", "warc": "w.gz"}
    assert drafts[0].columns["general_metadata.language"] == "en"
    assert reasons(drafts[1]) == ["image missing"]
    as_bytes = [{"images": [{"bytes": png(3), "path": None}, None], "texts": [None, "after"]}]
    drafts, _ = read("obelics", parquet_file(tmp_path / "b.parquet", as_bytes))
    assert seen(drafts[0]) == [(png(3), "auto"), ("after", "auto")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets as `datasets` writes them."""
    import datasets

    root = tmp_path_factory.mktemp("hf")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "score": datasets.Value("float32"),
            "day": datasets.Value("date32"),
        }
    )

    def split(start: int, count: int) -> Any:
        pictures = [Image.open(io.BytesIO(png(i))) for i in range(start, start + count)]
        names = [f"picture {i}" for i in range(start, start + count)]
        columns = {"image": pictures, "caption": names, "score": [0.5] * count, "day": [None] * count}
        return datasets.Dataset.from_dict(columns, features=features)

    split(0, 5).save_to_disk(root / "one")
    both = datasets.DatasetDict({"train": split(0, 4), "test": split(4, 2)})
    both.save_to_disk(root / "both", num_shards={"train": 2, "test": 1})
    split(0, 3).map(lambda row: row, cache_file_name=str(root / "cache.arrow"))
    return root


def test_datasets_of_hugging_face(saved: Path) -> None:
    drafts, refused = read("huggingface", saved / "one")
    assert not refused and [seen(d)[1][0] for d in drafts] == [f"picture {i}" for i in range(5)]
    for number, draft in enumerate(drafts):
        data = seen(draft)[0][0]
        assert isinstance(data, bytes)
        assert Image.open(io.BytesIO(data)).tobytes() == Image.open(io.BytesIO(png(number))).tobytes()
    assert drafts[0].columns["score"] == 0.5
    config = corpus("/r", {"name": "s", "format": "huggingface", "urls": [str(saved / "both")]})
    names = [unit.name for unit in list_units(config)]
    assert names == [
        "both/test/data-00000-of-00001.arrow",
        "both/train/data-00000-of-00002.arrow",
        "both/train/data-00001-of-00002.arrow",
    ]
    assert len(read("huggingface", saved / "both" / "train")[0]) == 4
    assert len(read("huggingface", saved / "cache.arrow")[0]) == 3


def test_arrow_files_that_are_damaged(saved: Path, tmp_path: Path) -> None:
    whole = next((saved / "one").glob("*.arrow")).read_bytes()
    path = tmp_path / "a.arrow"
    for data in (whole[: len(whole) // 2], b"", b"\0" * 100, b"no arrow at all"):
        path.write_bytes(data)
        drafts, refused = read("huggingface", path)
        assert not drafts and refused.total() <= 1
    table = pa.Table.from_pylist([{"text": str(i)} for i in range(200)])
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table, max_chunksize=50)
    path.write_bytes(path.read_bytes()[:-500])
    drafts, refused = read("huggingface", path)
    assert 100 <= len(drafts) < 200 and refused == {"file broken": 1}
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)
    assert len(read("huggingface", path)[0]) == 200


def test_limit_reads_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with many row groups, those behind the limit are not touched."""
    rows = [{"image": png(i, (96, 96)), "text": f"{i}"} for i in range(64)]
    path = parquet_file(tmp_path / "a.parquet", rows, row_group_size=4, compression="none")
    middle = pq.ParquetFile(path).metadata.row_group(8).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[middle : middle + 50] = b"\xff" * 50
    path.write_bytes(data)
    config = corpus(tmp_path, {"name": "s", "format": "parquet", "urls": [str(path)], "limit": 3})
    (unit,) = list_units(config)
    digests = []
    for _ in range(2):
        with opened(config, unit) as opened_rows:
            taken = [row for row, _ in zip(opened_rows, range(3), strict=False)]
            digests.append(opened_rows.sha256())
        assert all(isinstance(row, Draft) for row in taken)
    assert digests[0] == digests[1]
    assert len(rows_of("parquet", path)) == 64 - 4 + 1
