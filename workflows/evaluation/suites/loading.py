"""What a suite makes of its files: items and rules, loaded together and handed out apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import MAIN_SPLIT
from workflows.evaluation.item import Item, Part, Target
from workflows.evaluation.suites.config import JudgeConfig
from workflows.evaluation.suites.files import File, seed_of

FORMAT = 1
"""Goes up when the suites on files ask or judge otherwise with the same config."""
SHOWN = 20
"""Refused rows that are named; all are counted."""


JudgeRules = Callable[[JudgeConfig, Mapping[str, str] | None], dict[str, Any]]
"""Rules of a judge; the second argument is the model that is served, which may be the judge."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Items, and what decides their figures."""

    items: list[Item]
    rules: dict[str, Any]


class Loader:
    """Loads for whichever of `items` and `rules` is asked first, and keeps the other part until it is asked, once."""

    def __init__(self, load: Callable[[EvaluateConfig], Loaded], judge: JudgeRules = lambda *_: {}) -> None:
        """`load` reads the files; `judge` tells the rules of whoever judges, which are not loaded with them."""
        self._load, self._judge = load, judge
        self._kept: dict[str, tuple[str, Any]] = {}

    def items(self, config: EvaluateConfig) -> list[Item]:
        """The items of a config; UsageError where what they are made of is missing, or of another layout."""
        found: list[Item] = self._part(config, "items", "rules")
        return found

    def rules(self, config: EvaluateConfig, served: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What decides the figures of a config, of a model that is `served`; UsageError as above."""
        found: dict[str, Any] = self._part(config, "rules", "items")
        return {**found, **self._judge(config.judge, served)}

    def _part(self, config: EvaluateConfig, wanted: str, other: str) -> Any:
        key, value = self._kept.pop(wanted, ("", None))
        if key == (asked := config.model_dump_json()):
            return value
        loaded = self._load(config)
        self._kept = {other: (asked, getattr(loaded, other))}
        return getattr(loaded, wanted)


def rules_of(
    config: EvaluateConfig, files: Mapping[str, File], refused: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """The rules that all suites on files have: digests, limit, what was refused, and `more`."""
    return {
        "format": FORMAT,
        "limit": config.limit,
        "files": {name: file.rule for name, file in files.items()},
        "refused": {"count": len(refused), "rows": dict(list(refused.items())[:SHOWN])},
        **more,
    }


def notes_of(rules: Mapping[str, Any], what: str) -> list[str]:
    """A line on refused rows, where there are any."""
    refused = rules.get("refused", {"count": 0})
    if not refused["count"]:
        return []
    name, why = next(iter(refused["rows"].items()))
    return [f"{refused['count']} {what} were refused and not asked; the first is {name}: {why}"]


def item(
    config: EvaluateConfig,
    suite: str,
    name: str,
    prompt: tuple[Part, ...],
    target: Target,
    truth: str,
    *,
    copy: int = 0,
    group: str | None = None,
    detail: str = "",
) -> Item:
    """An item of a suite on files; `copy` tells several generations of one prompt apart, which are one group."""
    name = f"{suite}/{name}" + (f"/{copy}" if copy else "")
    return Item(
        id=name,
        task=suite,
        split=MAIN_SPLIT,
        prompt=prompt,
        target=target,
        seed=seed_of(config.seed, name),
        truth=truth,
        scene=group or name,
        detail=detail,
        max_images=1 if target == "image" else None,
    )
