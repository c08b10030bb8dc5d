"""Encoders: actors that hold the models and turn filled chunks into stored parts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.corpus.cluster import Environment
from workflows.corpus.config import CorpusConfig
from workflows.corpus.encoded import write_encoded
from workflows.corpus.filling import Filled
from workflows.corpus.models import load_models
from workflows.corpus.refusals import RefusedImage, write_refusals
from workflows.corpus.units import Unit

Row = dict[str, Any]


def row_of(unit: Unit, filled: Filled) -> Row:
    """A filled chunk as a row for `Encoder`."""
    chunk, refused = filled.chunk, [asdict(r) | {"head": r.head.hex()} for r in filled.refused]
    told = {"source": unit.source, "file": unit.main, "refused": refused}
    return {
        "name": chunk.name,
        "wants": ",".join(chunk.wants),
        "images": chunk.images,
        "width": chunk.size[0],
        "height": chunk.size[1],
        "pixels": filled.pixels.tobytes(),
        "told": json.dumps(told),
    }


class Encoder:
    """An actor: holds the encoders, and turns each chunk of pixels that comes into stored parts.

    What it refuses is written first, so that whoever sees a part without an image can see why.
    """

    def __init__(
        self,
        config: CorpusConfig,
        folders: Mapping[str, str],
        batches: Mapping[str, int],
        round_: int,
        environment: Environment | None = None,
    ) -> None:
        """`folders` and `batches` say by kind where parts go and how many images go through a network at once; a
        kind without a batch goes in `encode.batch_size`, cut as its model likes it."""
        if environment is not None:
            environment.apply()
        self._config, self._folders, self._batches = config, folders, batches
        self._facts = {"encode": config.encode_digest(), "round": round_}
        self._most: dict[str, int] = {}
        pair = (config.encode.codec, config.encode.understanding)
        self._models = load_models(pair, device_of(config), config.encode.dtype)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Encode and store the one chunk in `rows`; how many images were encoded, and how many refused."""
        row = {key: values[0] for key, values in rows.items()}
        images, told = list(row["images"]), json.loads(row["told"])
        pixels = np.frombuffer(row["pixels"], np.uint8)
        pixels = pixels.reshape(len(images), int(row["height"]), int(row["width"]), 3)
        refused = [RefusedImage(**(r | {"head": bytes.fromhex(r["head"])})) for r in told.pop("refused")]
        places, found = {r.place for r in refused}, {}
        for kind in str(row["wants"]).split(","):
            arrays = self._arrays(kind, pixels)
            bad = _not_finite(arrays, places)
            refused += [RefusedImage(place, f"{kind} not finite") for place in bad]
            found[kind] = arrays, sorted(places.union(bad))
        if refused:
            # An image is named once, with what was wrong first.
            first = {r.place: r for r in reversed(refused)}
            write_refusals(self._config.root, self._facts, told, images, [first[i] for i in sorted(first)])
        for kind, (arrays, gone) in found.items():
            write_encoded(self._folders[kind], str(row["name"]), images, arrays, gone)
        lost = len({r.place for r in refused})
        return {"images": np.array([len(images) - lost]), "refused": np.array([lost])}

    def _arrays(self, kind: str, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        at_once = self._batches.get(kind)
        size = at_once or self._config.encode.batch_size
        assert isinstance(size, int), "a batch was found for every kind"
        passed = at_once or self._models[kind].images_at_once(*pixels.shape[1:3])
        found = []
        for start in range(0, len(pixels), size):
            batch = pixels[start : start + size]
            # Of a short batch, whole passes of the network are enough: each computes what it would in a full one.
            full = min(size, -(-len(batch) // passed) * passed)
            padding = np.repeat(batch[-1:], full - len(batch), axis=0)
            encoded = self._within_memory(kind, np.concatenate([batch, padding]), at_once)
            found.append(encoded[: len(batch)])
        with np.errstate(over="ignore"):
            return np.concatenate(found).astype(np.float16)

    def _within_memory(self, kind: str, batch: NDArray[np.uint8], at_once: int | None) -> NDArray[np.float32]:
        """The batch encoded; in halves, of halves, from the first time that the device has no room for it."""
        if len(batch) <= self._most.get(kind, len(batch)):
            try:
                encoded: NDArray[np.float32] = self._models[kind].encode(batch, at_once).float().cpu().numpy()
                return encoded
            except RuntimeError as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise
                self._most[kind] = len(batch) // 2
                free_memory()
        half = len(batch) // 2
        return np.concatenate(
            [self._within_memory(kind, part, at_once) for part in (batch[:half], batch[half:])]
        )


def device_of(config: CorpusConfig) -> str:
    """Where the encoders compute."""
    return "cuda" if config.encode.gpus_per_actor else "cpu"


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that the device, or the machine, has no room."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Give back what torch keeps of a GPU for later."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _not_finite(arrays: NDArray[np.float16], refused: set[int]) -> Sequence[int]:
    finite = np.isfinite(arrays.reshape(len(arrays), -1)).all(axis=1)
    return [place for place in np.flatnonzero(~finite).tolist() if place not in refused]
