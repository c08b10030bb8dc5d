"""What MLflow's pages say in words (Markdown): of the experiment, the run, the registered model and its versions."""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from workflows.config import flattened, load, presets
from workflows.errors import UsageError
from workflows.revision import DIRTY
from workflows.tracking import COMMIT
from workflows.training.charts import TITLE, view_path
from workflows.training.config import TrainConfig
from workflows.training.identity import PARENTS, WEIGHTS, corpora_of

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a description; a person may edit it, so it is written once."""
CHANGED = "oneflow.changed"
"""The preset that a run is nearest to, and what it changed of it."""
PLACES = ("name", "tracking", "checkpoint", "registry", "compute", "watch")
"""Sections of a config that do not say what is trained."""
LONGEST = 12
"""Keys that a description names."""


def run_name(config: TrainConfig, key: str) -> str:
    """The config's name and the beginning of the run's key: another run, another name."""
    return f"{config.name}-{key[:6]}"


def changes(config: TrainConfig) -> tuple[str, dict[str, Any]]:
    """The preset that `config` is nearest to, and the dotted keys in which it differs, with its values.

    The name of the preset is "" where the defaults are nearest. Where it runs and how it is watched are left out.
    """
    now = _flat(config)
    found = []
    for name, origin in _origins(config):
        before = _flat(origin)
        found.append((name, {key: value for key, value in now.items() if before.get(key) != value}))
    return min(found, key=lambda pair: (len(pair[1]), pair[0] != config.name, pair[0]))


def changed_line(config: TrainConfig) -> str:
    """`changes` in one line: the preset, then what --set takes; "" for a config of defaults."""
    preset, keys = changes(config)
    found = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in _places_last(keys)
    ]
    more = [f"and {len(found) - LONGEST} more"] if len(found) > LONGEST else []
    return " ".join([*filter(None, [preset]), *found[:LONGEST], *more])


def _places_last(keys: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """URLs are long, and tell least."""
    return sorted(keys.items(), key=lambda pair: pair[0].endswith(".url"))


def experiment_note(experiment: str) -> str:
    """Of an experiment with runs of `oneflow train`; the tracker puts its number for {experiment_id}."""
    return f"""Runs of `oneflow train`: **[open the charts]({view_path("{experiment_id}")})**.
They are in the menu of views too, as *{TITLE}*.

```
oneflow runs list --experiment {shlex.quote(experiment)}
oneflow runs compare RUN RUN --out comparison
```

A run's name is its config's name and the first digits of its key; `oneflow.changed` says what it changed.
"""


def run_note(config: TrainConfig, key: str, tags: Mapping[str, str]) -> str:
    """Of a run: what it trains on what, and the commands that train it again and compare it."""
    corpora = "\n".join(f"- corpus `{c.name}@{c.version}`: {c.url}" for c in corpora_of(tags))
    origin = f"config `{changed_line(config)}`" if changed_line(config) else "a config of defaults"
    return f"""Objective **{config.objective.kind}**, {int(tags["oneflow.parameters"]):,} parameters, {origin}.

{corpora}
- run key `{key}`; checkpoints below `{config.checkpoint.url}/{key}`

Train it again, in the same state of the code:

{_again(key, config.name, tags[COMMIT])}

Compare it with another: `oneflow runs compare {key} OTHER`
"""


def model_note(name: str, experiment: str) -> str:
    """Of a registered model."""
    return f"""A OneFlow model: reads and writes documents of text and images at once. Versions come from
`oneflow train` in the experiment `{experiment}`; `@candidate` is the newest, `@champion` passed the gate.

```
oneflow generate models:/{name}@champion --prompt "a large red circle"
oneflow evaluate models:/{name}@candidate
oneflow serve models:/{name}@champion
oneflow models lineage models:/{name}@champion
```
"""


def version_note(config: TrainConfig, tags: Mapping[str, str], version: str, size: int) -> str:
    """Of a version (NAME/NUMBER) of `size` bytes: how well it does, what it was made of, how to use and make it."""
    loss, run_id = tags.get("oneflow.heldout_loss"), tags.get("oneflow.run_id")
    measured = f"held-out loss **{loss}**, " if loss else ""
    facts = [f"- run `{run_id}`, step {tags['oneflow.steps']}"] if run_id else []
    facts += [f"- starts from `{tags[PARENTS[0]]}`"] if tags.get(PARENTS[0]) else []
    facts += [
        f"- corpus `{c.name}@{c.version}` ({c.url}), manifest `{c.manifest_sha256[:12]}`"
        for c in corpora_of(tags)
    ]
    facts += [
        f"- codec `{tags['oneflow.codec']}`, encoder `{tags['oneflow.encoder']}`",
        f"- commit `{tags[COMMIT][:12]}`, config `{tags['oneflow.config_digest'][:12]}`",
        f"- weights `{tags[WEIGHTS][:12]}`",
    ]
    again = f"\nTrain it again:\n\n{_again(run_id, config.name, tags[COMMIT])}\n" if run_id else ""
    return f"""**{config.name}**: {int(tags["oneflow.parameters"]):,} parameters, objective {config.objective.kind},
images of {config.registry.image_size} pixels, {measured}{size / 1e6:.1f} MB with tokenizer and encoders.

{chr(10).join(facts)}

```
oneflow generate models:/{version} --prompt "a large red circle"
oneflow evaluate models:/{version}
oneflow serve models:/{version}
oneflow models lineage models:/{version}
```
{again}
`README.md` among its artifacts is its card.
"""


def _again(run: str, name: str, commit: str) -> str:
    """The commands that train a run again, in the same state of the code."""
    return f"""```
git checkout {commit.removesuffix(DIRTY)}
oneflow runs show {run} --config > run.yaml
oneflow train run.yaml --set name={shlex.quote(name)}-again
```"""


def _origins(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Every preset, and the defaults over what a config must name. A description never stops a training."""
    for name in presets("train"):
        with suppress(UsageError):
            yield name, load("train", name)
    data = {"corpora": [corpus.model_dump() for corpus in config.data.corpora]}
    yield "", TrainConfig.model_validate({"data": data, "checkpoint": {"url": config.checkpoint.url}})


def _flat(config: TrainConfig) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    return flattened({section: value for section, value in tree.items() if section not in PLACES})
