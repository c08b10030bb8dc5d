"""Encode: every image of the documents, once for ever, to a latent and (where wanted) understanding features.

Tasks read the sources again and bring images to size; a pool of actors that hold the encoders turns chunks of them
into parts. What is in a chunk depends on the input alone, and short batches are padded, so a job that was killed and
is run again computes the same. The driver holds some bytes for each image, no image.

An image that cannot be encoded is refused, and the documents that name it are left out. That may bring others in
(weights), so there are rounds, each with the refusals of those before it, until one refuses nothing.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from workflows.corpus import ingest
from workflows.corpus.batch import MEMORY_SHARE, find
from workflows.corpus.chunks import Chunk, Job, Planned, plan
from workflows.corpus.cluster import Environment, cluster, cpus
from workflows.corpus.config import CorpusConfig
from workflows.corpus.encoded import Store
from workflows.corpus.encoder import Encoder, Row, row_of
from workflows.corpus.filling import filled
from workflows.corpus.frames import Frame
from workflows.corpus.models import identify
from workflows.corpus.parts import wrote
from workflows.corpus.progress import Progress
from workflows.corpus.refusals import Refusals
from workflows.corpus.selection import select
from workflows.corpus.units import Unit, list_units

ACTOR_CPUS, READER_CPUS = 0.5, 0.5
"""Shares of a CPU, so that one is enough for an encoder and a reader both."""
BLOCK_BYTES = 1
"""Ray Data's target for a block: less than any chunk, so that each is passed on alone as soon as it is full."""
IN_FLIGHT = 2
"""Chunks handed to an encoder at once: one that it works on, one that waits."""


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What encode did: `images` are distinct images of the corpus, `encoded` those of them encoded now, `reused`
    those that had been; `refused` could not be."""

    codec: str | None
    encoder: str | None
    images: int
    encoded: int
    reused: int
    refused: int
    seconds: float


def run(config: CorpusConfig) -> EncodeReport:
    """Encode every image of the ingested documents that is not stored yet.

    Raises:
        OneFlowError: a source that was not ingested or has changed since, an encoder that cannot be loaded.
    """
    begin = time.monotonic()
    units = ingest.reports(config, list_units(config))
    if not any(unit.images for unit in units):
        return EncodeReport(None, None, 0, 0, 0, 0, time.monotonic() - begin)
    models = identify(config)
    stores = load_stores(config, *models)
    encoded = refused = reused = 0
    for round_ in count():
        refusals = Refusals.load(config)
        planned = plan(config, units, select(config, units, refusals.before(round_)), stores, refusals)
        reused = reused if round_ else planned.stored
        if planned.jobs:
            with cluster():
                done = _encode(config, planned, stores, round_)
            encoded, refused = encoded + done[0], refused + done[1]
            for store in stores:
                wrote(store.folder, (c.name for job in planned.jobs for c in job.chunks))
            stores = load_stores(config, *models)
        if Refusals.load(config).last_round < round_:
            break
    return EncodeReport(*models, planned.images, encoded, reused, refused, time.monotonic() - begin)


def load_stores(config: CorpusConfig, codec: str | None, encoder: str | None) -> tuple[Store, Store]:
    """What is stored of latents and of features."""
    frame = Frame.of(config.encode).name
    return (
        Store.load(config.root, "latents", codec, frame),
        Store.load(config.root, "features", encoder, frame),
    )


def _encode(config: CorpusConfig, planned: Planned, stores: Sequence[Store], round_: int) -> tuple[int, int]:
    """How many images were encoded, and how many refused."""
    import ray.data

    environment = Environment.of_driver()
    batches = _batches(config, stores, environment)
    progress = Progress("encode", planned.wanted, "images")
    encoded = refused = 0
    context = ray.data.DataContext.get_current()
    usual, context.target_max_block_size = context.target_max_block_size, BLOCK_BYTES
    try:
        rows = [_row(number, job) for number, job in enumerate(planned.jobs)]
        units = tuple(job.unit for job in planned.jobs)
        items = ray.data.from_items(rows, override_num_blocks=len(rows))
        read = items.flat_map(_Read(config, units, environment), num_cpus=READER_CPUS)
        folders = {store.kind: store.folder for store in stores}
        chunks = sum(len(job.chunks) for job in planned.jobs)
        done = read.map_batches(
            Encoder,
            batch_size=1,
            fn_constructor_args=(config, folders, batches, round_, environment),
            compute=ray.data.ActorPoolStrategy(
                size=min(actors(config), chunks), max_tasks_in_flight_per_actor=IN_FLIGHT
            ),
            num_cpus=ACTOR_CPUS,
            num_gpus=config.encode.gpus_per_actor or None,
        )
        for row in done.iter_rows():
            encoded, refused = encoded + int(row["images"]), refused + int(row["refused"])
            progress.add(row["images"], row["refused"])
    finally:
        context.target_max_block_size = usual
    progress.finish()
    return encoded, refused


def actors(config: CorpusConfig) -> int:
    """Encoders that run at once."""
    import ray

    if config.encode.actors is not None:
        return config.encode.actors
    if config.encode.gpus_per_actor:
        return max(1, int(ray.cluster_resources().get("GPU", 0) / config.encode.gpus_per_actor))
    return cpus()


def _batches(config: CorpusConfig, stores: Sequence[Store], environment: Environment) -> dict[str, int]:
    """The batch of each kind where it is to be found by trial, else nothing."""
    import ray

    if config.encode.batch_size != "auto":
        return {}
    room = ray.cluster_resources().get("memory", 1e9)
    limit = int(MEMORY_SHARE[0] * room / actors(config))
    task = ray.remote(num_cpus=ACTOR_CPUS, num_gpus=config.encode.gpus_per_actor)(find)
    places = [Store(store.root, store.kind, store.model, store.frame) for store in stores]
    found: dict[str, int] = ray.get(task.remote(config, places, environment, limit))
    return found


def _row(number: int, job: Job) -> Row:
    """A job as columns, its images as bytes: no worker gets the others' jobs."""
    return {
        "unit": number,
        "sha256": job.sha256,
        "wants": [",".join(chunk.wants) for chunk in job.chunks],
        "widths": [chunk.size[0] for chunk in job.chunks],
        "heights": [chunk.size[1] for chunk in job.chunks],
        "digests": [chunk.digests for chunk in job.chunks],
    }


@dataclass(frozen=True)
class _Read:
    config: CorpusConfig
    units: tuple[Unit, ...]
    environment: Environment

    def __call__(self, row: Row) -> Iterator[Row]:
        self.environment.apply()
        columns = zip(row["wants"], row["widths"], row["heights"], row["digests"], strict=True)
        chunks = tuple(Chunk(tuple(w.split(",")), (int(x), int(y)), bytes(d)) for w, x, y, d in columns)
        unit = self.units[row["unit"]]
        for chunk in filled(self.config, Job(unit, row["sha256"], chunks)):
            yield row_of(unit, chunk)
