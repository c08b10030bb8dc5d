"""The demo's config: how large the made corpus is, and the presets of the other stages with what differs here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from workflows.config import Config, load
from workflows.corpus.config import CorpusConfig
from workflows.errors import UsageError
from workflows.evaluation.config import EvaluateConfig
from workflows.stack.config import StackConfig
from workflows.storage import join
from workflows.training.config import TrainConfig


class SynthSettings(Config):
    """How many documents of each kind are drawn."""

    captions: int = Field(default=12_000, ge=1)
    """Images with a caption."""
    vqa: int = Field(default=4_000, ge=1)
    """Questions about an image."""
    stories: int = Field(default=2_000, ge=1)
    """Interleaved stories of two to four images."""
    seed: int = Field(default=0, ge=0)
    """The same seed gives the same bytes."""

    def counts(self) -> dict[str, int]:
        """Documents by kind."""
        return {"captions": self.captions, "vqa": self.vqa, "stories": self.stories}


class DemoConfig(Config):
    """The whole line. A section names a preset of its kind and may change any key of it: `train.budget.steps=20`."""

    stack: dict[str, Any] = {"preset": "local"}
    """The embedded services."""
    synth: SynthSettings = SynthSettings()
    """The corpus that is drawn."""
    corpus: dict[str, Any] = {"preset": "shapes"}
    """The corpus that is built of it; its sources' URLs are set by the demo."""
    train: dict[str, Any] = {"preset": "shapes-nano"}
    """The training; its corpus is set by the demo."""
    evaluate: dict[str, Any] = {"preset": "shapes"}
    """The evaluation and its gate."""
    report: str = "demo-report"
    """Directory of the report."""

    def stack_config(self) -> StackConfig:
        """The stack's config; UsageError where the section is wrong, as for all of these."""
        config: StackConfig = _resolve("stack", self.stack)
        return config

    def corpus_config(self) -> CorpusConfig:
        """The corpus's config, its sources where `raw_url` says."""
        config: CorpusConfig = _resolve("corpus", self.corpus)
        raw = self.raw_url(config.root)
        sources = [
            s.model_copy(update={"urls": [u.replace("${root}/raw/shapes", raw) for u in s.urls]})
            for s in config.sources
        ]
        return config.model_copy(update={"sources": sources})

    def train_config(self, corpus_url: str | None = None, seed: int | None = None) -> TrainConfig:
        """The training's config, for the corpus version at `corpus_url` and with `seed` where given."""
        config: TrainConfig = _resolve("train", self.train)
        changes: dict[str, Any] = {} if seed is None else {"seed": seed}
        if corpus_url is not None:
            corpora = [config.data.corpora[0].model_copy(update={"url": corpus_url})]
            changes["data"] = config.data.model_copy(update={"corpora": corpora})
        return config.model_copy(update=changes)

    def evaluate_config(self) -> EvaluateConfig:
        """The evaluation's config."""
        config: EvaluateConfig = _resolve("evaluate", self.evaluate)
        return config

    def raw_url(self, root: str) -> str:
        """Where the drawn documents lie: another place for other numbers or another seed."""
        what = json.dumps(self.synth.model_dump(mode="json"), sort_keys=True)
        return join(root, "raw", f"shapes-{hashlib.sha256(what.encode()).hexdigest()[:8]}")


def _resolve(kind: str, section: Mapping[str, Any]) -> Any:
    changes = dict(section)
    if "preset" not in changes:
        raise UsageError(f"demo config, section {kind}", "it names no preset", f"set {kind}.preset")
    return load(kind, str(changes.pop("preset")), list(_overrides(changes)))


def _overrides(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A tree of changes as `a.b=value` lines."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"
