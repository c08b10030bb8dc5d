"""What a suite makes of its files: items and rules, loaded together and handed out apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.figures import MAIN_SPLIT
from workflows.evaluation.item import Item, Part, Target
from workflows.evaluation.suites.files import File, seed_of

FORMAT = 1
"""Goes up when the suites on files ask or judge otherwise with the same config."""
SHOWN = 20
"""Refused rows that are named; all are counted."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Items, and what decides their figures."""

    items: list[Item]
    rules: dict[str, Any]


@dataclass
class Loader:
    """Loads for whichever of `items` and `rules` is asked first, and keeps it for the other, once."""

    load: Callable[[EvaluateConfig], Loaded]
    _kept: tuple[str, Loaded] | None = field(default=None, repr=False)

    def __call__(self, config: EvaluateConfig) -> Loaded:
        """Items and rules of a config."""
        key = config.model_dump_json()
        if self._kept and self._kept[0] == key:
            found, self._kept = self._kept[1], None
        else:
            found = self.load(config)
            self._kept = (key, found)
        return found


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
