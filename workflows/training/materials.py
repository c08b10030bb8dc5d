"""What a run is made of, built from its config: corpora, tokenizer, objective, network; and the run's key."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from oneflow_core.data.cache import default_cache
from oneflow_core.data.lanes import LaneError
from oneflow_core.data.loader import Corpus, Loader, LoaderConfig
from oneflow_core.data.manifest import Manifest, ManifestError
from oneflow_core.data.shard import Sample
from oneflow_core.flows.schedule import Schedule
from oneflow_core.model import PRESETS, ModelConfig, OneFlowModel
from oneflow_core.model.llama import LlamaError, check_llama, load_llama
from oneflow_core.objectives import Objective, ObjectiveConfig, build_objective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example, Pack, collate
from oneflow_core.tokenizer import Tokenizer
from workflows.errors import OneFlowError, UsageError
from workflows.training.config import DataSettings, ObjectiveSettings, TrainConfig
from workflows.training.start import Needs, Start, find_start
from workflows.training.tensor_parallel import check_dimensions

RUN_SECTIONS = ("seed", "model", "objective", "optimiser", "budget", "ema")
"""What, beside the data, makes a run the run it is: machines, watching and places may change while it goes on."""
STREAM = ("corpora", "tokenizer", "tokens", "lanes", "packs_per_lane", "window", "look_ahead", "holdout")


@dataclass(frozen=True)
class _Corrupt:
    """The objective's corruption under a kappa; equal to another one under the same."""

    objective: Objective
    schedule: Schedule | None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Example:
        example = self.objective.corrupt(sample, rng, self.schedule)
        example.doc_id = sample.document.doc_id
        return example


@dataclass(frozen=True)
class Materials:
    """Corpora, tokenizer, objective and the network's dimensions."""

    manifests: tuple[Manifest, ...]
    tokenizer: Tokenizer
    model_config: ModelConfig
    objective: Objective
    run_key: str
    llama: str | None = None
    """Directory of the Llama that the trunk starts from."""
    start: Start | None = None
    """Model of ours that the weights start from; `load_start` copies them where no checkpoint is restored."""

    @property
    def corpus_version(self) -> str:
        """`name@version` of every corpus."""
        return "+".join(f"{m.name}@{m.version}" for m in self.manifests)

    def build_model(self, seed: int) -> OneFlowModel:
        """The network with its initial weights, the same on every worker."""
        torch.manual_seed(seed)
        model = OneFlowModel(self.model_config)
        if self.llama:
            load_llama(model, self.llama)
        return model

    def build_loader(
        self,
        data: DataSettings,
        seed: int,
        part: Literal["train", "heldout"],
        rank: int,
        world_size: int,
        schedule_at: Callable[[int], Schedule | None] = lambda _: None,
    ) -> Loader[Example, Pack]:
        """The stream of worker `rank`; UsageError when the corpora are too small for the lanes.

        `schedule_at` says under which kappa the documents of a step are corrupted; None: the config's own.
        """
        config = LoaderConfig(
            tokens=data.tokens,
            lanes=data.lanes,
            packs_per_lane=data.packs_per_lane if part == "train" else data.heldout_packs,
            seed=seed,
            window=data.window,
            look_ahead=data.look_ahead,
            holdout=data.holdout,
            part=part,
            read_ahead=data.read_ahead if part == "train" else 0,
            process=data.reader == "process",
            cache=Path(data.cache_dir) if data.cache_dir else default_cache(),
            cache_bytes=int(data.cache_gb * 2**30),
        )
        weights = [c.weight for c in data.corpora]
        corpora = [Corpus(m, w) for m, w in zip(self.manifests, weights, strict=True)]
        prepare = _Corrupt(self.objective, None)

        def prepare_at(step: int) -> _Corrupt:
            return _Corrupt(self.objective, schedule_at(step))

        workers = {"rank": rank, "world_size": world_size}
        try:
            return Loader(corpora, config, **workers, prepare=prepare, prepare_at=prepare_at, collate=collate)
        except LaneError as error:
            raise UsageError("the training data", str(error), "see data.lanes") from None


def gather(config: TrainConfig) -> Materials:
    """Everything that `config` names, checked to fit together.

    Raises:
        OneFlowError: a corpus that is not there or not valid.
        UsageError: corpora that differ in codec or encoder, dimensions that the network does not have, or a model to
            start from that does not fit.
    """
    manifests = tuple(_manifest(corpus.url) for corpus in config.data.corpora)
    tokenizer = Tokenizer.from_pretrained(config.data.tokenizer)
    model_config = _model_config(config, manifests, tokenizer)
    check_dimensions(model_config, config.compute.tensor_parallel)
    if config.model.llama:
        try:
            check_llama(model_config, config.model.llama)
        except LlamaError as error:
            raise UsageError("model.llama", str(error), "or leave it out, to start from scratch") from None
    objective = build_objective(objective_config(config.objective), model_config, tokenizer)
    start = find_start(config.model, Needs(model_config, tokenizer, manifests))
    key = _run_key(config, manifests, tokenizer, start)
    return Materials(manifests, tokenizer, model_config, objective, key, config.model.llama, start)


def objective_config(settings: ObjectiveSettings) -> ObjectiveConfig:
    """The objective's own config."""
    tree = settings.model_dump()
    return ObjectiveConfig(**{**tree, "mixture": TaskMixture(**tree["mixture"])})


def _manifest(url: str) -> Manifest:
    try:
        return Manifest.load(url)
    except (OSError, ManifestError) as error:
        mend = "build it with oneflow corpus build, or set data.corpora"
        raise OneFlowError(f"corpus {url}", str(error), mend) from error


def _model_config(config: TrainConfig, manifests: tuple[Manifest, ...], tokenizer: Tokenizer) -> ModelConfig:
    settings, kind = config.model, config.objective.kind
    found: dict[str, Any] = {"vocab_size": tokenizer.vocab_size + (kind == "masked"), "objective": kind}
    channels = _common(
        "codec", [(m.codec, m.latent_shapes[0][0] if m.latent_shapes else None) for m in manifests]
    )
    features_shape = _common("encoder", [(m.encoder, m.features_shape) for m in manifests])
    if channels:
        found["latent_channels"] = channels
    if features_shape:
        found["feature_dim"] = features_shape[1]
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    if unknown := sorted(set(settings.dims) - known):
        raise UsageError(f"model.dims.{unknown[0]}", "no such field", f"known: {', '.join(sorted(known))}")
    try:
        return dataclasses.replace(PRESETS[settings.preset], **{**found, **settings.dims})
    except (TypeError, ValueError) as error:
        raise UsageError("model.dims", str(error), "change the dimensions") from None


def _common(what: str, pairs: list[tuple[str | None, Any]]) -> Any:
    """The shape that all corpora with images share."""
    held = {pair for pair in pairs if pair[0] is not None}
    if len(held) > 1:
        names = ", ".join(sorted(str(name) for name, _ in held))
        mend = "encode all with the same, with oneflow corpus build --stage encode"
        raise UsageError("data.corpora", f"they hold latents or features of different {what}s: {names}", mend)
    return next(iter(held))[1] if held else None


def _run_key(
    config: TrainConfig, manifests: tuple[Manifest, ...], tokenizer: Tokenizer, start: Start | None
) -> str:
    tree: Mapping[str, Any] = config.model_dump(mode="json")
    for name in ("start", "start_sha256"):
        del tree["model"][name]
    data = {name: tree["data"][name] for name in STREAM if name != "corpora"}
    weights = [corpus["weight"] for corpus in tree["data"]["corpora"]]
    parts = {
        "name": config.name,
        **{name: tree[name] for name in RUN_SECTIONS},
        "data": data,
        "corpora": [[m.name, m.version, weight] for m, weight in zip(manifests, weights, strict=True)],
        "tokenizer": tokenizer.digest,
        **({"start": start.key} if start else {}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
