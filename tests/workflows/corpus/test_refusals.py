"""Images that ingest kept and encode cannot take: refused, counted, remembered; the same after any kill."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_core.document import Document, ImageSegment, TextSegment
from tests.workflows.corpus.inputs import corpus, encoded, jsonl, pairs, png, tar
from tests.workflows.corpus.test_encode import codec, encode, planned, small, stores, units_of
from workflows.corpus import encode as job
from workflows.corpus.chunks import Job
from workflows.corpus.config import CorpusConfig
from workflows.corpus.encoded import read_encoded
from workflows.corpus.ingest import UnitReport, reports
from workflows.corpus.ingested import UnitWriter
from workflows.corpus.models import load_models
from workflows.corpus.parts import read_part
from workflows.corpus.pictures import square
from workflows.corpus.refusals import Refusals, refused_images
from workflows.corpus.selection import select
from workflows.corpus.units import list_units
from workflows.errors import OneFlowError
from workflows.storage import write_json

__all__ = ["codec"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def halved(seed: int) -> bytes:
    """A picture whose header is fine and whose pixels end early."""
    noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    return encoded(Image.fromarray(noise), "JPEG")[:1500]


def admitted(
    config: CorpusConfig, *documents: list[bytes], sides: tuple[int, int] = (64, 64)
) -> list[UnitReport]:
    """The units with further documents in the first one's part, as of an ingest that looks at headers alone."""
    unit, *_ = units_of(config)
    there = read_part(unit.url, ["document", "images"])
    held = [Document.from_json(json.loads(document)) for document in there["document"].to_pylist()]
    for number, images in enumerate(documents):
        if [sha256(data) for data in images] not in there["images"].to_pylist():
            segments = [TextSegment("x"), *(ImageSegment(sha256(data), *sides) for data in images)]
            held.append(Document(f"captions/extra/{number}", "captions", "CC0-1.0", tuple(segments)))
    with UnitWriter(config, unit.unit) as writer:
        for document in held:
            writer.keep(document, 0)
        writer.commit(len(held), unit.sha256)
    return reports(config, list_units(config))


def broken(root: Path, codec: str, **settings: object) -> tuple[CorpusConfig, list[UnitReport]]:
    """Six good pictures, two that do not decode, one document with one of these and a good one; all in one tar."""
    rows = [{"id": f"m{i}", "segments": [{"image": f"{i}.png"}, {"text": str(i)}]} for i in range(6)]
    jsonl(root / "raw" / "m.jsonl", rows)
    held = [(f"{i}.png", png(i)) for i in range(6)]
    held[2:2] = [("a.jpg", halved(1)), ("b.jpg", halved(2)), ("z.png", png(99))]
    folder = root / "raw" / "m"
    folder.mkdir()
    for name, data in held:
        (folder / name).write_bytes(data)
    source = {"name": "captions", "format": "jsonl", "urls": ["${root}/raw/m.jsonl"]}
    config = small(root, codec, source, **settings)
    extra = [{"id": n, "segments": [{"image": i} for i in names] + [{"text": n}]} for n, names in EXTRA]
    jsonl(root / "raw" / "m.jsonl", [*rows[:2], *extra, *rows[2:]])
    documents = [
        [png(99) if name == "z.png" else halved(1 + "ab".index(name[0])) for name in names]
        for _, names in EXTRA
    ]
    return config, admitted(config, *documents)


EXTRA = [("bad", ["a.jpg"]), ("pair", ["b.jpg", "z.png"])]


def files(root: Path) -> dict[str, bytes]:
    kinds = ("latents", "features", "quarantine/encode")
    found = [p for kind in kinds for p in sorted((root / kind).rglob("*.parquet"))]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_what_does_not_decode_is_refused_and_its_neighbours_are_as_ever(tmp_path: Path, codec: str) -> None:
    config, units = broken(tmp_path, codec)
    where = stores(config)
    found = planned(config, where, units)
    assert encode(config, found.jobs, where) == (7, 2)
    assert refused_images(config) == {sha256(halved(i)): "image unreadable" for i in (1, 2)}
    (url,) = {p for p in (tmp_path / "quarantine" / "encode").iterdir()} or {None}
    rows = read_part(str(url)).to_pylist()
    assert {r["key"] for r in rows} == {"a.jpg", "b.jpg"} and all(
        halved(1)[:20] == r["head"][:20] for r in rows
    )
    store = stores(config)[0]
    assert len(store.images) == 7 and len(store.refused) == 2
    model = load_models((config.encode.codec, None), "cpu")["latents"]
    held = read_encoded(store.parts, {sha256(png(i)) for i in range(6)})
    for i in range(6):
        alone = model.encode(square(png(i), 64)[None])[0].numpy()
        np.testing.assert_allclose(held[sha256(png(i))], alone, rtol=2e-3, atol=2e-3)
    selection = select(config, units)
    assert selection.left_out(units)["captions"] == {"image unreadable": 2}
    kept = sum(unit.account.kept for unit in units)
    assert sum(selection.taken(i).sum() for i in range(len(units))) + 2 == kept == 8
    assert planned(config, stores(config), units).jobs == (), "what was refused is not tried again"
    Path(str(url)).unlink()
    again = planned(config, stores(config), units)
    assert again.wanted == 2, "what was taken out of quarantine is"


@pytest.mark.parametrize("understanding", [None, {"name": "embedded"}])
def test_killed_between_any_two_writes(
    tmp_path: Path, codec: str, understanding: dict[str, str] | None
) -> None:
    """Run again, it plans and writes what was meant, to the last byte."""
    config, units = broken(tmp_path, codec, understanding=understanding)
    kinds = {"features": "e@1"} if understanding else {}
    encode(config, planned(config, stores(config, **kinds), units).jobs, stores(config, **kinds))
    whole = files(tmp_path)
    order = sorted(whole, key=lambda name: tmp_path.joinpath(name).stat().st_mtime_ns)
    assert len(order) >= 4
    for written in range(len(order)):
        for name in order[written:]:
            (tmp_path / name).unlink()
        encode(config, planned(config, stores(config, **kinds), units).jobs, stores(config, **kinds))
        assert files(tmp_path) == whole, f"after {order[:written]}"


def test_a_picture_of_other_sides_than_it_said_is_refused(tmp_path: Path, codec: str) -> None:
    wide = png(7, (128, 64))
    tar(tmp_path / "raw" / "a.tar", [*pairs(0, 2), ("w.png", wide), ("w.txt", b"")])
    buckets = {"step": 16, "max_aspect": 2}
    config = small(tmp_path, codec, buckets=buckets)
    units = admitted(config, [wide], sides=(64, 64))
    assert encode(config, planned(config, stores(config), units).jobs, stores(config)) == (2, 1)
    assert refused_images(config) == {sha256(wide): "image size"}


def test_an_image_that_is_gone_from_a_unit_that_did_not_change(tmp_path: Path, codec: str) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 2))
    config = small(tmp_path, codec)
    units = admitted(config, [png(77)])
    assert encode(config, planned(config, stores(config), units).jobs, stores(config)) == (2, 1)
    assert refused_images(config) == {sha256(png(77)): "image changed"}


def test_later_rounds_do_not_move_earlier_ones(tmp_path: Path, codec: str) -> None:
    """The picture that shares a document with a refused one is planned in round 0 whenever that is planned."""
    config, units = broken(tmp_path, codec, part_images=3)
    every = planned(config, stores(config), units).jobs[0].chunks
    done = [chunk for chunk in every if sha256(halved(2)) in chunk.images]
    encode(config, [Job(units[0].unit, units[0].sha256, tuple(done))], stores(config))
    left = planned(config, stores(config), units).jobs[0].chunks
    assert list(left) == [chunk for chunk in every if chunk not in done]
    refusals = Refusals.load(config)
    assert (
        refusals.last_round == 0
        and len(refusals.before(0).images) == 0
        and len(refusals.before(1).images) > 0
    )


def test_refusals_hold_for_one_way_of_encoding(tmp_path: Path, codec: str) -> None:
    config, units = broken(tmp_path, codec)
    encode(config, planned(config, stores(config), units).jobs, stores(config))
    assert refused_images(small(tmp_path, codec, dtype="bfloat16")) == {}


def test_with_all_encoded_neither_ray_nor_a_model_is_needed(tmp_path: Path, codec: str) -> None:
    import ray

    tar(tmp_path / "raw" / "a.tar", pairs(0, 5))
    config = small(tmp_path, codec)
    remember(config, "c@1")
    units = units_of(config)
    encode(config, planned(config, stores(config), units).jobs, stores(config))
    report = job.run(config)
    assert (report.codec, report.images, report.encoded, report.reused) == ("c@1", 5, 0, 5)
    assert not ray.is_initialized()


def remember(config: CorpusConfig, name: str) -> None:
    """What `identify` writes when it has loaded a model."""
    from workflows.corpus import models

    url = models._remembered(config.root, "latents", config.encode.codec)
    assert url is not None
    write_json(url, {"id": name})


def test_a_unit_that_changed_is_an_error(tmp_path: Path, codec: str) -> None:
    path = tar(tmp_path / "raw" / "a.tar", pairs(0, 3))
    config = corpus(tmp_path, encode={"codec": {"name": codec}, "understanding": None})
    units = units_of(config)
    tar(path, pairs(1, 3))
    with pytest.raises(OneFlowError, match="changed since it was ingested"):
        encode(config, planned(config, stores(config), units).jobs, stores(config))
