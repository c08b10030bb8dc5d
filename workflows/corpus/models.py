"""The codec and the understanding encoder of a corpus: their ids, found without loading them where that can be, and
they themselves."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from workflows.corpus.cluster import Environment, cluster
from workflows.corpus.config import CorpusConfig
from workflows.corpus.encode_config import Dtype, ModelConfig
from workflows.corpus.fingerprint import of_files
from workflows.errors import OneFlowError
from workflows.storage import exists, join, read_json, write_json

Models = tuple[str | None, str | None]
"""Ids of the codec and of the understanding encoder; None for one that is not used."""
Pair = tuple[ModelConfig | None, ModelConfig | None]
ASSETS = {"latents": "latent_codec", "features": "understanding_encoder"}
KINDS = ("latents", "features")
IDENTIFY_CPUS = 0.5


def identify(config: CorpusConfig) -> Models:
    """Ids of the codec and the encoder, by their weights as they are, whatever they compute in.

    Those of files at hand are remembered under the root by a digest of the files; others are loaded, on the cluster,
    and the worker that does may become an encoder afterwards.

    Raises:
        OneFlowError: a model that cannot be loaded.
    """
    pair = (config.encode.codec, config.encode.understanding)
    urls = [_remembered(config.root, kind, model) for kind, model in zip(KINDS, pair, strict=True)]
    known = [url is not None and exists(url) for url in urls]
    if all(model is None or found for model, found in zip(pair, known, strict=True)):
        codec, encoder = (
            read_json(url)["id"] if url and there else None for url, there in zip(urls, known, strict=True)
        )
        return codec, encoder
    import ray

    with cluster():
        found: Models = ray.get(
            ray.remote(num_cpus=IDENTIFY_CPUS)(_identify).remote(pair, Environment.of_driver())
        )
    for url, name in zip(urls, found, strict=True):
        if url is not None:
            write_json(url, {"id": name}, if_absent=True)
    return found


@lru_cache(maxsize=1)
def load_models(models: Pair, device: str, dtype: Dtype = "float32") -> dict[str, Any]:
    """Codec and encoder by what they make ("latents", "features"); what the config leaves out is left out.

    Raises:
        OneFlowError: a model that cannot be loaded.
    """
    codec, understanding = models
    loaded: dict[str, Any] = {}
    if codec is not None:
        from oneflow_core.encoders import LatentCodec

        loaded["latents"] = _load(LatentCodec, "encode.codec", codec, device, dtype)
    if understanding is not None:
        from oneflow_core.encoders import UnderstandingEncoder

        loaded["features"] = _load(UnderstandingEncoder, "encode.understanding", understanding, device, dtype)
    return loaded


def _load(cls: Any, key: str, model: ModelConfig, device: str, dtype: Dtype) -> Any:
    import torch

    from oneflow_core.encoders import EncoderError

    where = {"subfolder": model.subfolder, "device": device, "dtype": getattr(torch, dtype)}
    try:
        return cls.from_pretrained(model.name, **where)
    except EncoderError as error:
        raise OneFlowError(f"{key} {model.name}", str(error), f"correct {key} in the config") from None


def _identify(models: Pair, environment: Environment) -> Models:
    environment.apply()
    loaded = load_models(models, "cpu")
    codec, encoder = (loaded[kind].id if kind in loaded else None for kind in KINDS)
    return codec, encoder


def _remembered(root: str, kind: str, model: ModelConfig | None) -> str | None:
    """Where the id of a model is remembered; None where its files are not at hand."""
    digest = None if model is None else of_files(model, ASSETS[kind])
    if model is None or digest is None:
        return None
    # A model without a stored name is named after its directory.
    key = hashlib.sha256(f"{digest}:{Path(model.name).name}".encode()).hexdigest()
    return join(root, "models", f"{kind}-{key[:16]}.json")
