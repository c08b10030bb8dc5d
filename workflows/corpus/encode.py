"""Encode: every image of the documents, once for ever, to a latent and (where wanted) understanding features.

Tasks read the sources again and cut images to squares; a pool of actors that hold the encoders turns chunks of them
into parts. What is in a chunk depends on the input alone, and short batches are padded, so a job that was killed and
is run again computes the same. The driver holds one line for each image, no image.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workflows.corpus import ingest
from workflows.corpus.cluster import Environment, cluster, cpus
from workflows.corpus.config import CorpusConfig
from workflows.corpus.documents import sha256_of
from workflows.corpus.encode_config import ModelConfig
from workflows.corpus.encoded import Store, write_encoded
from workflows.corpus.ingest import UnitReport
from workflows.corpus.parts import read_part, wrote
from workflows.corpus.pictures import PictureError, Square, square
from workflows.corpus.progress import Progress
from workflows.corpus.selection import Selection, select
from workflows.corpus.sources import Draft, Picture
from workflows.corpus.units import Unit, list_units, opened
from workflows.errors import OneFlowError

Models = tuple[str | None, str | None]
"""Ids of the codec and of the understanding encoder; None for one that is not used."""
ACTOR_CPUS, READER_CPUS = 0.5, 0.5
"""Shares of a CPU, so that one is enough for an encoder and a reader both."""
BLOCK_BYTES = 1
"""Ray Data's target for a block: less than any chunk, so that each is passed on alone as soon as it is full."""


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What encode did: `images` are distinct images of the corpus, `encoded` those of them encoded now."""

    codec: str | None
    encoder: str | None
    images: int
    encoded: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images that are encoded together and stored as one part, `wants` says as what."""

    name: str
    wants: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """The chunks that are filled from one unit."""

    unit: Unit
    chunks: tuple[Chunk, ...]


def run(config: CorpusConfig) -> EncodeReport:
    """Encode every image of the ingested documents that is not stored yet.

    Raises:
        OneFlowError: a source that was not ingested or has changed since, an encoder that cannot be loaded.
    """
    begin = time.monotonic()
    units = ingest.reports(config, list_units(config))
    if not any(unit.images for unit in units):
        return EncodeReport(None, None, 0, 0, time.monotonic() - begin)
    with cluster():
        stores = load_stores(config, *identify(config))
        jobs, images = plan(config, units, select(config, units), stores)
        encoded = sum(len(chunk.images) for job in jobs for chunk in job.chunks)
        if jobs:
            _encode(config, jobs, stores)
        for store in stores:
            wrote(store.folder, (c.name for job in jobs for c in job.chunks if store.kind in c.wants))
    latents, features = stores
    return EncodeReport(latents.model, features.model, images, encoded, time.monotonic() - begin)


def identify(config: CorpusConfig) -> Models:
    """Ids of the codec and the encoder; a worker loads them for it, and may become an encoder afterwards."""
    import ray

    models = (config.encode.codec, config.encode.understanding)
    task = ray.remote(num_cpus=ACTOR_CPUS)(_identify)
    found: Models = ray.get(task.remote(models, Environment.of_driver()))
    return found


def load_stores(config: CorpusConfig, codec: str | None, encoder: str | None) -> tuple[Store, Store]:
    """What is stored of latents and of features."""
    size = config.encode.image_size
    return (
        Store.load(config.root, "latents", codec, size),
        Store.load(config.root, "features", encoder, size),
    )


def images_of(unit: UnitReport, taken: NDArray[np.bool_]) -> list[str]:
    """SHA-256 of the images of those documents of a unit that are taken, each once, in their order."""
    column = read_part(unit.url, ["images"])["images"].filter(pa.array(taken))
    return list(dict.fromkeys(sha256 for images in column.to_pylist() for sha256 in images))


def plan(
    config: CorpusConfig, units: Sequence[UnitReport], selection: Selection, stores: Sequence[Store]
) -> tuple[list[Job], int]:
    """What is to be encoded, each image in the first unit that has it; and how many distinct images there are."""
    seen: set[str] = set()
    jobs: list[Job] = []
    for number, unit in enumerate(units):
        new = [s for s in images_of(unit, selection.taken(number)) if s not in seen]
        seen.update(new)
        chunks = _chunks(config, new, stores)
        if chunks:
            jobs.append(Job(unit.unit, tuple(chunks)))
    return jobs, len(seen)


def _chunks(config: CorpusConfig, images: Sequence[str], stores: Sequence[Store]) -> list[Chunk]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for sha256 in images:
        wants = tuple(s.kind for s in stores if s.model is not None and sha256 not in s.places)
        if wants:
            groups.setdefault(wants, []).append(sha256)
    size = config.encode.part_images
    return [
        Chunk(_name(group[i : i + size]), wants, tuple(group[i : i + size]))
        for wants, group in groups.items()
        for i in range(0, len(group), size)
    ]


def _name(images: Sequence[str]) -> str:
    return f"part-{hashlib.sha256(''.join(images).encode()).hexdigest()[:16]}"


def _encode(config: CorpusConfig, jobs: Sequence[Job], stores: Sequence[Store]) -> None:
    import ray.data

    chunks = sum(len(job.chunks) for job in jobs)
    progress = Progress("encode", sum(len(c.images) for job in jobs for c in job.chunks), "images")
    context = ray.data.DataContext.get_current()
    usual, context.target_max_block_size = context.target_max_block_size, BLOCK_BYTES
    environment = Environment.of_driver()
    try:
        items = ray.data.from_items([{"job": i} for i in range(len(jobs))], override_num_blocks=len(jobs))
        read = items.flat_map(_Read(config, tuple(jobs), environment), num_cpus=READER_CPUS)
        folders = {store.kind: store.folder for store in stores}
        done = read.map_batches(
            Encoder,
            batch_size=1,
            fn_constructor_args=(config, folders, environment),
            compute=ray.data.ActorPoolStrategy(size=min(actors(config), chunks)),
            num_cpus=ACTOR_CPUS,
            num_gpus=config.encode.gpus_per_actor or None,
        )
        for row in done.iter_rows():
            progress.add(row["images"])
    finally:
        context.target_max_block_size = usual
    progress.finish()


def actors(config: CorpusConfig) -> int:
    """Encoders that run at once."""
    import ray

    if config.encode.actors is not None:
        return config.encode.actors
    if config.encode.gpus_per_actor:
        return max(1, int(ray.cluster_resources().get("GPU", 0) / config.encode.gpus_per_actor))
    return cpus()


class Encoder:
    """An actor: holds the encoders, and turns each chunk of squares that comes into stored parts."""

    def __init__(self, config: CorpusConfig, folders: dict[str, str], environment: Environment) -> None:
        environment.apply()
        self._batch, self._folders = config.encode.batch_size, folders
        device = "cuda" if config.encode.gpus_per_actor else "cpu"
        self._models = load_models((config.encode.codec, config.encode.understanding), device)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Encode and store the one chunk in `rows`."""
        images, size = list(rows["images"][0]), int(rows["size"][0])
        squares = np.frombuffer(rows["pixels"][0], np.uint8).reshape(len(images), size, size, 3)
        for kind in str(rows["wants"][0]).split(","):
            arrays = self._arrays(self._models[kind], squares)
            _check_finite(kind, images, arrays)
            write_encoded(self._folders[kind], str(rows["name"][0]), images, arrays)
        return {"images": np.array([len(images)])}

    def _arrays(self, model: Any, squares: NDArray[np.uint8]) -> NDArray[np.float16]:
        found = []
        for start in range(0, len(squares), self._batch):
            batch = squares[start : start + self._batch]
            padding = np.repeat(batch[-1:], self._batch - len(batch), axis=0)
            encoded = model.encode(np.concatenate([batch, padding]))
            found.append(encoded[: len(batch)].float().cpu().numpy())
        with np.errstate(over="ignore"):
            return np.concatenate(found).astype(np.float16)


@lru_cache(maxsize=1)
def load_models(models: tuple[ModelConfig | None, ModelConfig | None], device: str) -> dict[str, Any]:
    """Codec and encoder by what they make ("latents", "features"); what the config leaves out is left out.

    Raises:
        OneFlowError: a model that cannot be loaded.
    """
    codec, understanding = models
    loaded: dict[str, Any] = {}
    if codec is not None:
        from oneflow_core.encoders import LatentCodec

        loaded["latents"] = _load(LatentCodec, "encode.codec", codec, device)
    if understanding is not None:
        from oneflow_core.encoders import UnderstandingEncoder

        loaded["features"] = _load(UnderstandingEncoder, "encode.understanding", understanding, device)
    return loaded


def _load(cls: Any, key: str, model: ModelConfig, device: str) -> Any:
    from oneflow_core.encoders import EncoderError

    try:
        return cls.from_pretrained(model.name, subfolder=model.subfolder, device=device)
    except EncoderError as error:
        raise OneFlowError(f"{key} {model.name}", str(error), f"correct {key} in the config") from None


def _identify(
    models: tuple[ModelConfig | None, ModelConfig | None], environment: Environment
) -> tuple[str | None, str | None]:
    environment.apply()
    loaded = load_models(models, "cpu")
    codec, encoder = (loaded[kind].id if kind in loaded else None for kind in ("latents", "features"))
    return codec, encoder


def _check_finite(kind: str, images: Sequence[str], arrays: NDArray[np.float16]) -> None:
    for sha256, array in zip(images, arrays, strict=True):
        if not np.isfinite(array).all():
            cause = f"its {kind} do not fit float16"
            raise OneFlowError(
                f"image {sha256}", cause, "use a codec with the scale factor that its latents need"
            )


@dataclass(frozen=True)
class _Read:
    config: CorpusConfig
    jobs: tuple[Job, ...]
    environment: Environment

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.environment.apply()
        job = self.jobs[row["job"]]
        size = self.config.encode.image_size
        for chunk, squares in filled(self.config, job):
            yield {
                "name": chunk.name,
                "wants": ",".join(chunk.wants),
                "images": list(chunk.images),
                "size": size,
                "pixels": np.stack(squares).tobytes(),
            }


def filled(config: CorpusConfig, job: Job) -> Iterator[tuple[Chunk, list[Square]]]:
    """Each chunk of the job with its images' squares, as soon as the last of them was read.

    Raises:
        OneFlowError: an image that the documents name is no longer in the source.
    """
    chunk_of = {sha256: chunk for chunk in job.chunks for sha256 in chunk.images}
    held: dict[Chunk, dict[str, Square]] = {chunk: {} for chunk in job.chunks}
    for sha256, picture in _pictures(config, job.unit):
        chunk = chunk_of.pop(sha256, None)
        if chunk is None:
            continue
        try:
            held[chunk][sha256] = square(picture.data or b"", config.encode.image_size)
        except PictureError as error:
            raise _changed(job.unit, f"{picture.name}: {error}") from None
        if len(held[chunk]) == len(chunk.images):
            squares = held.pop(chunk)
            yield chunk, [squares[s] for s in chunk.images]
    if held:
        raise _changed(job.unit, f"{len(chunk_of)} of its images are gone")


def _pictures(config: CorpusConfig, unit: Unit) -> Iterator[tuple[str, Picture]]:
    with opened(config, unit) as drafts:
        for draft in drafts:
            for content, _ in draft.segments if isinstance(draft, Draft) else ():
                if isinstance(content, Picture) and content.data is not None:
                    yield sha256_of(content), content


def _changed(unit: Unit, what: str) -> OneFlowError:
    return OneFlowError(unit.main, f"changed since it was ingested ({what})", "build the corpus again")
