"""Encode without Ray: what is planned, what is read back from the sources, and what an encoder stores."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.workflows.corpus.inputs import corpus, jsonl, pairs, png, tar
from tests.workflows.corpus.test_ingest import ingest
from workflows.corpus.chunks import Job, Planned, plan
from workflows.corpus.cluster import Environment
from workflows.corpus.config import CorpusConfig
from workflows.corpus.digests import to_hex
from workflows.corpus.encoded import Store, read_encoded
from workflows.corpus.encoder import Encoder, row_of
from workflows.corpus.filling import filled
from workflows.corpus.frames import Frame
from workflows.corpus.ingest import UnitReport, reports
from workflows.corpus.models import load_models
from workflows.corpus.pictures import square
from workflows.corpus.refusals import Refusals, refused_images
from workflows.corpus.selection import select
from workflows.corpus.units import list_units
from workflows.errors import OneFlowError


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A codec of SD3's layout with small random weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("codec"))
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder)
    return folder


def small(root: Path, codec: str, *sources: dict[str, Any], **encode: Any) -> CorpusConfig:
    settings = {"codec": {"name": codec}, "understanding": None, "part_images": 4, "batch_size": 3, **encode}
    return corpus(root, *sources, encode=settings)


def units_of(config: CorpusConfig) -> list[UnitReport]:
    ingest(config)
    return reports(config, list_units(config))


def planned(config: CorpusConfig, where: list[Store], units: list[UnitReport] | None = None) -> Planned:
    """What the first round plans; units that were not ingested yet are."""
    units = units_of(config) if units is None else units
    refusals = Refusals.load(config)
    return plan(config, units, select(config, units, refusals.before(0)), where, refusals)


def stores(config: CorpusConfig, latents: str | None = "c@1", features: str | None = None) -> list[Store]:
    frame = Frame.of(config.encode).name
    return [
        Store.load(config.root, "latents", latents, frame),
        Store.load(config.root, "features", features, frame),
    ]


def encode(
    config: CorpusConfig, jobs: Sequence[Job], where: list[Store], batches: Mapping[str, int] | None = None
) -> tuple[int, int]:
    """What the Ray job does, in this process: how many were encoded, and how many refused."""
    folders = {store.kind: store.folder for store in where}
    encoder = Encoder(config, folders, batches or {}, 0, Environment.of_driver())
    done = np.zeros(2, np.int64)
    for job in jobs:
        for chunk in filled(config, job):
            told = encoder({key: [value] for key, value in row_of(job.unit, chunk).items()})
            done += np.array([told["images"][0], told["refused"][0]])
    return int(done[0]), int(done[1])


def test_each_image_is_planned_once_in_its_first_unit(tmp_path: Path, codec: str) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 6))
    tar(tmp_path / "raw" / "b.tar", pairs(3, 6))
    config = small(tmp_path, codec)
    found = planned(config, stores(config))
    assert (found.images, found.wanted, found.stored) == (9, 9, 0)
    assert [[len(chunk) for chunk in job.chunks] for job in found.jobs] == [[4, 2], [3]]
    assert len({image for job in found.jobs for chunk in job.chunks for image in chunk.images}) == 9


def test_what_is_stored_is_not_planned_again_and_chunks_stay_the_same(tmp_path: Path, codec: str) -> None:
    """A job that was killed after any of its chunks plans the others just as before."""
    tar(tmp_path / "raw" / "a.tar", pairs(0, 10))
    config = small(tmp_path, codec)
    units = units_of(config)
    (job,) = planned(config, stores(config), units).jobs
    for done in job.chunks:
        encode(config, [Job(job.unit, job.sha256, (done,))], stores(config))
        rest = [chunk for chunk in job.chunks if chunk != done]
        (again,) = planned(config, stores(config), units).jobs
        assert list(again.chunks) == rest
        Path(stores(config)[0].parts[0]).unlink()


def test_another_encoder_encodes_only_what_it_lacks(tmp_path: Path, codec: str) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 3))
    config = small(tmp_path, codec)
    units = units_of(config)
    encode(config, planned(config, stores(config), units).jobs, stores(config))
    assert planned(config, stores(config), units) == Planned((), 3, 3)
    (job,) = planned(config, stores(config, features="e@1"), units).jobs
    assert [chunk.wants for chunk in job.chunks] == [("features",)]
    (job,) = planned(config, stores(config, latents="c@2", features="e@1"), units).jobs
    assert [chunk.wants for chunk in job.chunks] == [("latents", "features")]


def test_latents_are_the_codec_s_whatever_they_were_encoded_with(tmp_path: Path, codec: str) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 5))
    config = small(tmp_path, codec)
    units = units_of(config)
    encode(config, planned(config, stores(config), units).jobs, stores(config))
    (store, _) = stores(config)
    model = load_models((config.encode.codec, None), "cpu")["latents"]
    found = read_encoded(store.parts_of(store.images), set(to_hex(store.images)))
    assert len(found) == 5 and store.shapes_of(store.images) == {(16, 8, 8): 5}
    for i in range(5):
        alone = model.encode(square(png(i), 64)[None])[0].numpy()
        stored = found[hashlib.sha256(png(i)).hexdigest()]
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored, alone, rtol=2e-3, atol=2e-3)
    first = {url: Path(url).read_bytes() for url in store.parts}
    for url in first:
        Path(url).unlink()
    encode(config, planned(config, stores(config), units).jobs, stores(config))
    assert {url: Path(url).read_bytes() for url in stores(config)[0].parts} == first


def test_a_source_that_changed_is_told(tmp_path: Path, codec: str) -> None:
    path = tar(tmp_path / "raw" / "a.tar", pairs(0, 5))
    config = small(tmp_path, codec)
    (job,) = planned(config, stores(config)).jobs
    size = path.stat().st_size
    shorter = tar(path, pairs(0, 3)).read_bytes()
    with pytest.raises(OneFlowError, match=rf"it ends at byte {len(shorter)} of {size}: it is not what was"):
        list(filled(config, job))
    path.write_bytes(shorter.ljust(size, b"\0"))
    with pytest.raises(OneFlowError, match=r"changed since it was ingested \(2 of its images are gone\)"):
        list(filled(config, job))


def test_text_alone_needs_no_encoder(tmp_path: Path, codec: str) -> None:
    jsonl(tmp_path / "raw" / "t.jsonl", [{"text": "x"}])
    config = small(tmp_path, codec, {"name": "t", "format": "jsonl", "urls": ["${root}/raw/t.jsonl"]})
    assert planned(config, stores(config)) == Planned((), 0, 0)


def test_latents_that_do_not_fit_are_refused(tmp_path: Path, codec: str) -> None:
    import json

    config_file = Path(codec) / "config.json"
    huge = tmp_path / "huge"
    huge.mkdir()
    tree = json.loads(config_file.read_text()) | {"scaling_factor": 1e9}
    (huge / "config.json").write_text(json.dumps(tree))
    weights = "diffusion_pytorch_model.safetensors"
    (huge / weights).write_bytes((Path(codec) / weights).read_bytes())
    tar(tmp_path / "raw" / "a.tar", pairs(0, 1))
    config = small(tmp_path, str(huge))
    assert encode(config, planned(config, stores(config)).jobs, stores(config)) == (0, 1)
    assert refused_images(config) == {hashlib.sha256(png(0)).hexdigest(): "latents not finite"}


def test_a_codec_that_is_not_there_is_told(tmp_path: Path) -> None:
    config = small(tmp_path, str(tmp_path / "none"))
    with pytest.raises(OneFlowError, match="encode.codec .*none"):
        Encoder(config, {}, {}, 0, Environment.of_driver())


def test_credentials_are_not_shown() -> None:
    assert "hunter2" not in repr(Environment({"AWS_SECRET_ACCESS_KEY": "hunter2"}))
