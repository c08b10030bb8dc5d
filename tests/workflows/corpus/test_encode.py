"""Encode without Ray: what is planned, what is read back from the sources, and what an encoder stores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.workflows.corpus.inputs import corpus, jsonl, pairs, png, tar
from tests.workflows.corpus.test_ingest import ingest
from workflows.corpus.cluster import Environment
from workflows.corpus.config import CorpusConfig
from workflows.corpus.encode import Encoder, Job, filled, load_models, plan
from workflows.corpus.encoded import Store, read_encoded
from workflows.corpus.ingest import UnitReport, reports
from workflows.corpus.pictures import square
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


def plan_all(config: CorpusConfig, stores: tuple[Store, Store]) -> tuple[list[Job], int]:
    units = units_of(config)
    return plan(config, units, select(config, units), stores)


def stores(config: CorpusConfig, latents: str | None = "c@1", features: str | None = None) -> list[Store]:
    return [
        Store.load(config.root, "latents", latents, config.encode.image_size),
        Store.load(config.root, "features", features, config.encode.image_size),
    ]


def encode(config: CorpusConfig, jobs: list[Job], where: list[Store]) -> None:
    """What the Ray job does, in this process."""
    encoder = Encoder(config, {store.kind: store.folder for store in where}, Environment.of_driver())
    for job in jobs:
        for chunk, squares in filled(config, job):
            row = {
                "name": [chunk.name],
                "wants": [",".join(chunk.wants)],
                "images": [list(chunk.images)],
                "size": [config.encode.image_size],
                "pixels": [np.stack(squares).tobytes()],
            }
            assert encoder(row)["images"].tolist() == [len(chunk.images)]


def test_each_image_is_planned_once_in_its_first_unit(tmp_path: Path, codec: str) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 6))
    tar(tmp_path / "raw" / "b.tar", pairs(3, 6))
    config = small(tmp_path, codec)
    jobs, images = plan_all(config, stores(config))
    assert images == 9
    assert [[len(chunk.images) for chunk in job.chunks] for job in jobs] == [[4, 2], [3]]
    assert len({image for job in jobs for chunk in job.chunks for image in chunk.images}) == 9


def test_what_is_stored_is_not_planned_again_and_chunks_stay_the_same(tmp_path: Path, codec: str) -> None:
    """A job that was killed after any of its chunks plans the others just as before."""
    tar(tmp_path / "raw" / "a.tar", pairs(0, 10))
    config = small(tmp_path, codec)
    units = units_of(config)
    ((job,), _) = plan(config, units, select(config, units), stores(config))
    for done in job.chunks:
        encode(config, [Job(job.unit, (done,))], stores(config))
        rest = [chunk for chunk in job.chunks if chunk != done]
        ((again,), _) = plan(config, units, select(config, units), stores(config))
        assert list(again.chunks) == rest
        Path(stores(config)[0].parts[0]).unlink()


def test_another_encoder_encodes_only_what_it_lacks(tmp_path: Path, codec: str) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 3))
    config = small(tmp_path, codec)
    units = units_of(config)
    encode(config, plan(config, units, select(config, units), stores(config))[0], stores(config))
    assert plan(config, units, select(config, units), stores(config)) == ([], 3)
    ((job,), _) = plan(config, units, select(config, units), stores(config, features="e@1"))
    assert [chunk.wants for chunk in job.chunks] == [("features",)]
    ((job,), _) = plan(config, units, select(config, units), stores(config, latents="c@2", features="e@1"))
    assert [chunk.wants for chunk in job.chunks] == [("latents", "features")]


def test_latents_are_the_codec_s_whatever_they_were_encoded_with(tmp_path: Path, codec: str) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 5))
    config = small(tmp_path, codec)
    units = units_of(config)
    encode(config, plan(config, units, select(config, units), stores(config))[0], stores(config))
    (store, _) = stores(config)
    model = load_models((config.encode.codec, None), "cpu")["latents"]
    images = {image: i for i, image in enumerate(list(store.places))}
    found = read_encoded(store.parts_of(list(images)), set(images))
    assert len(found) == 5 and store.shape() == (16, 8, 8)
    import hashlib

    for i in range(5):
        alone = model.encode(square(png(i), 64)[None])[0].numpy()
        stored = found[hashlib.sha256(png(i)).hexdigest()]
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored, alone, rtol=2e-3, atol=2e-3)
    first = {url: Path(url).read_bytes() for url in store.parts}
    for url in first:
        Path(url).unlink()
    encode(config, plan(config, units, select(config, units), stores(config))[0], stores(config))
    assert {url: Path(url).read_bytes() for url in stores(config)[0].parts} == first


def test_a_source_that_changed_is_told(tmp_path: Path, codec: str) -> None:
    path = tar(tmp_path / "raw" / "a.tar", pairs(0, 5))
    config = small(tmp_path, codec)
    (job,), _ = plan_all(config, stores(config))
    tar(path, pairs(0, 3))
    with pytest.raises(OneFlowError, match=r"changed since it was ingested \(2 of its images are gone\)"):
        list(filled(config, job))


def test_text_alone_needs_no_encoder(tmp_path: Path, codec: str) -> None:
    jsonl(tmp_path / "raw" / "t.jsonl", [{"text": "x"}])
    config = small(tmp_path, codec, {"name": "t", "format": "jsonl", "urls": ["${root}/raw/t.jsonl"]})
    assert plan_all(config, stores(config)) == ([], 0)


def test_latents_that_do_not_fit_are_told(tmp_path: Path, codec: str) -> None:
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
    jobs, _ = plan_all(config, stores(config))
    with pytest.raises(OneFlowError, match="its latents do not fit float16"):
        encode(config, jobs, stores(config))


def test_a_codec_that_is_not_there_is_told(tmp_path: Path) -> None:
    config = small(tmp_path, str(tmp_path / "none"))
    with pytest.raises(OneFlowError, match="encode.codec .*none"):
        Encoder(config, {}, Environment.of_driver())


def test_credentials_are_not_shown() -> None:
    assert "hunter2" not in repr(Environment({"AWS_SECRET_ACCESS_KEY": "hunter2"}))
