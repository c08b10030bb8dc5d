"""Frechet distance of generated pictures to real ones, on the features that the config names.

It is called FID on the original Inception weights alone; on others it bears their name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneflow_core.encoders.features import PictureFeatures, picture_features
from oneflow_core.metrics.frechet import FeatureStatistics, frechet_distances
from oneflow_core.metrics.interval import resampled
from workflows import storage
from workflows.errors import UsageError
from workflows.evaluation.config import EvaluateConfig, FeaturesConfig
from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.drawings import Drawings, drawing_items
from workflows.evaluation.suites.encoders import named_by
from workflows.evaluation.suites.files import WHENCE, File, Pictures, chosen, pixels, read, square
from workflows.evaluation.suites.loading import Loaded, Loader, notes_of, rules_of
from workflows.evaluation.suites.prompts import read_captions, read_prompts

__all__ = ["figures", "items", "judge", "rules"]

SUITE = "coco-fid"
AT_ONCE = 64
"""Pictures in memory at a time."""
BLACK_SIDE = 64
"""Of the picture that stands in for a failed one where none is resized."""
REFERENCES = {
    "fid": "pytorch-fid 0.3.0",
    "fid_clean": "clean-fid 0.1.35, mode clean",
}
NOT_FID = "none: features other than FID's Inception; compare with figures of the same features alone"


def judge(
    batch: Sequence[Item],
    outputs: Sequence[Output],
    *,
    config: EvaluateConfig | None = None,
    rules: Mapping[str, Any] | None = None,
    **_: Any,
) -> Judged:
    """Features of every picture; a failed item counts as a black one, as pictures that a filter removes do."""
    assert config is not None
    features, held, made = _features(config.features), rules or {}, Drawings(outputs)
    statistics = _reference(config)[0]
    vectors = _encode(features, made, config.features.square)
    notes = [*notes_of(held, "prompts"), *made.lost("count as black ones")]
    for what, count in (("generated", len(made)), ("reference", statistics.count)):
        if count <= vectors.shape[1]:
            notes.append(
                f"{count} {what} pictures for {vectors.shape[1]} features: the distance is biased upwards"
            )
    context = (features.figure, statistics, config.resamples)
    return Judged(batch, outputs, [{} for _ in batch], list(vectors), held, notes, context)


def figures(judged: Judged) -> dict[str, Figure]:
    """The distance; its interval resamples the generated pictures, not the references."""
    if len(judged.items) < 2:
        return {}
    name, reference, resamples = judged.context
    vectors = np.stack(judged.readings)
    resamples = min(resamples, most_resamples(vectors.shape[1]))
    distance = frechet_distances(reference, vectors)
    estimate = resampled(distance, len(vectors), resamples=resamples, least=0)
    return {f"coco-fid/{name}": Figure(estimate, better="lower", resamples=resamples, per_item=False)}


def most_resamples(width: int) -> int:
    """Resamples that the width of features allows: each takes the eigenvalues of a matrix of that width."""
    return max(10, min(1000, 100_000_000 // width**2))


def _encode(features: PictureFeatures, made: Drawings, side: int | None) -> NDArray[np.float64]:
    black = np.zeros((side or BLACK_SIDE, side or BLACK_SIDE, 3), np.uint8)
    parts = []
    for start in range(0, len(made), AT_ONCE):
        shown = [black if one is None else square(one, side) for one in made[start : start + AT_ONCE]]
        parts.append(features(shown))
    return np.concatenate(parts)


@lru_cache(1)
def _loaded_features(kind: Any, path: str, resize: Any, device: str) -> PictureFeatures:
    with named_by(f"features of {kind}", "name their weights with --set features.path=PATH"):
        return picture_features(kind, path, resize=resize, device=device)


def _features(config: FeaturesConfig) -> PictureFeatures:
    return _loaded_features(config.kind, config.path or "", config.resize, config.device)


def _reference(config: EvaluateConfig) -> tuple[FeatureStatistics, str]:
    """Moments of the reference pictures, from a file or computed, and a digest of what they were made of."""
    features, url = _features(config.features), config.data.references or ""
    if not url.endswith(".npz"):
        return _computed(features, url, config.features.square)
    file, wanted = read("references", url, SUITE), statistics_name(features, config.features.square)
    with tempfile.TemporaryDirectory(prefix="oneflow-fid-") as directory:
        path = Path(directory, "statistics.npz")
        path.write_bytes(file.data)
        try:
            held = FeatureStatistics.load(path)
        except ValueError as error:
            raise file.refused(str(error)) from None
    if held.features != wanted:
        raise file.refused(f"it holds features {held.features}, not {wanted}")
    return held, storage.sha256(file.data)


def statistics_name(features: PictureFeatures, side: int | None) -> str:
    """What stored statistics must be of: the features, and how the pictures were cut."""
    return f"{features.id}/square-{side or 'none'}"


@lru_cache(1)
def _computed(features: PictureFeatures, url: str, side: int | None) -> tuple[FeatureStatistics, str]:
    pictures, digests = Pictures("references", url, SUITE), []
    total: FeatureStatistics | None = None
    for start in range(0, len(pictures.urls), AT_ONCE):
        shown = []
        for one in pictures.urls[start : start + AT_ONCE]:
            data = storage.read_bytes(one)
            digests.append(storage.sha256(data))
            try:
                shown.append(square(pixels(data), side))
            except ValueError as error:
                raise UsageError(f"data.references {url}", f"{one}: {error}", "remove or mend it") from None
        part = FeatureStatistics.of(statistics_name(features, side), features(shown))
        total = part if total is None else total + part
    assert total is not None
    return total, storage.sha256("".join(digests).encode())


def _load(config: EvaluateConfig) -> Loaded:
    """A prompt a picture: one caption of each picture of the captions file, or the prompts of a file."""
    prompts, file, refused = _prompts(config)
    features, (reference, digest) = _features(config.features), _reference(config)
    if reference.count < 2:
        raise UsageError(
            f"data.references {config.data.references}", "a single picture", f"give {WHENCE['references']}"
        )
    taken = {name: (prompts[name], "") for name in chosen(prompts, config.limit, config.seed)}
    return Loaded(
        drawing_items(config, SUITE, taken),
        rules_of(
            config,
            {file.field: file},
            refused,
            rule=f"Frechet distance, called {features.figure}",
            reference=REFERENCES.get(features.figure, NOT_FID),
            features=features.id,
            square=config.features.square,
            references={"count": reference.count, "sha256": digest},
            images_per_prompt=config.images_per_prompt,
        ),
    )


def _prompts(config: EvaluateConfig) -> tuple[dict[str, str], File, dict[str, str]]:
    """One caption of each picture, drawn by the seed, or the prompts of a file."""
    if config.data.prompts:
        file = read("prompts", config.data.prompts, SUITE)
        prompts, refused = read_prompts(file)
        return prompts, file, refused
    file = read("captions", config.data.captions, SUITE)
    captions = read_captions(file, config.data.split)
    rng = np.random.default_rng(config.seed)
    drawn = {n: texts[int(rng.integers(len(texts)))].strip() for n, texts in captions.references.items()}
    return drawn, file, dict(captions.refused)


_loader = Loader(_load)
items, rules = _loader.items, _loader.rules
