"""Configs: YAML presets, `--set` overrides, validated by pydantic; a misspelt key is refused with the nearest name."""

import difflib
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from workflows.errors import UsageError

CONFIG_DIR = Path(__file__).parent / "configs"

KINDS: dict[str, str] = {
    "corpus": "workflows.corpus.config:CorpusConfig",
    "train": "workflows.training.config:TrainConfig",
    "evaluate": "workflows.evaluation.config:EvaluateConfig",
    "demo": "workflows.demo.config:DemoConfig",
    "stack": "workflows.stack.config:StackConfig",
    "experiment": "workflows.experiments.config:ExperimentConfig",
    "job": "workflows.submit.config:JobConfig",
}
"""Kind of config -> "module:Class" that validates it, imported when asked for."""


class Config(BaseModel):
    """Base of every config: frozen, no unknown keys, and the text under a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


C = TypeVar("C", bound=Config)


@cache
def model_of(kind: str) -> type[Config]:
    """The class that validates configs of `kind`; UsageError for a kind that does not exist."""
    if kind not in KINDS:
        raise UsageError(f'config kind "{kind}"', "there is no such kind", _nearest(kind, sorted(KINDS)))
    module, name = KINDS[kind].split(":")
    model: type[Config] = getattr(importlib.import_module(module), name)
    return model


def presets(kind: str) -> list[str]:
    """Names of the presets of `kind`, sorted."""
    return sorted(path.stem for path in (CONFIG_DIR / kind).glob("*.yaml"))


def load(kind: str, name_or_path: str, overrides: Sequence[str] = ()) -> Any:
    """The validated config of `kind`, from a preset's name or a YAML file, with `a.b=value` overrides applied.

    The result is an instance of `model_of(kind)`: write `config: TrainConfig = load("train", name)`.

    Raises UsageError for an unknown preset, a file that is no YAML mapping, an unknown key (its path and the
    nearest known name are given) and a value of the wrong type.
    """
    model = model_of(kind)
    tree = _read(kind, name_or_path)
    for override in overrides:
        _apply(tree, override)
    return validate(model, tree, name_or_path)


def validate(model: type[C], tree: dict[str, Any], origin: str) -> C:
    """`tree` as a `model`; `origin` (a file or preset) is named in the UsageError."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        parts = [_explain(model, detail) for detail in error.errors(include_url=False)]
        causes, mends = zip(*parts, strict=True)
        mend = "; ".join(dict.fromkeys(m for m in mends if m)) or "give a value of that kind"
        raise UsageError(f"config {origin}", "; ".join(causes), mend) from None


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, defaults included; loading it gives the same config."""
    import yaml

    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def digest(config: Config) -> str:
    """SHA-256 (hex) of the resolved config; independent of the order of keys and of what was left to default."""
    tree = config.model_dump(mode="json")
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A config's values by dotted key, as --set names them; a list of plain values is one value."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    found: dict[str, Any] = {}
    for key, value in items:
        inner = isinstance(value, Mapping) or (
            isinstance(value, list) and any(isinstance(v, Mapping) for v in value)
        )
        found |= flattened(value, f"{prefix}{key}.") if inner and value else {f"{prefix}{key}": value}
    return found


def _read(kind: str, name_or_path: str) -> dict[str, Any]:
    import yaml

    preset = CONFIG_DIR / kind / f"{name_or_path}.yaml"
    path = preset if preset.is_file() else Path(name_or_path)
    if not path.is_file():
        raise UsageError(
            f'{kind} config "{name_or_path}"',
            "it is neither a preset nor a file",
            _nearest(name_or_path, presets(kind)),
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path}", f"not YAML: {error}", "mend the file") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"config {path}", f"a {type(tree).__name__} at the top", "write keys and values")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    import yaml

    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f'--set "{override}"', "no KEY=VALUE", "write it like --set train.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(
            f'--set "{override}"', f"the value is not YAML: {error}", "quote the value"
        ) from None
    _put(tree, keys, value, override)


def _put(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    node: Any = tree
    for depth, key in enumerate(keys[:-1]):
        node = _child(node, key, override, ".".join(keys[: depth + 1]))
    if isinstance(node, list):
        node[_index(node, keys[-1], override)] = value
    else:
        node[keys[-1]] = value


def _child(node: Any, key: str, override: str, path: str) -> Any:
    child = node[_index(node, key, override)] if isinstance(node, list) else node.setdefault(key, {})
    if child is None and isinstance(node, dict):
        child = node[key] = {}
    if not isinstance(child, dict | list):
        raise UsageError(f'--set "{override}"', f"{path} is a value, not a section", "set a shorter key")
    return child


def _index(items: list[Any], key: str, override: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise UsageError(f'--set "{override}"', f'"{key}" is no index of a list of {len(items)}', "count from 0")


def _explain(model: type[BaseModel], detail: ErrorDetails) -> tuple[str, str]:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = sorted(_names_at(model, detail["loc"][:-1]))
        return f'unknown key "{path}"', _nearest(str(detail["loc"][-1]), known)
    if detail["type"] == "missing":
        return f'key "{path}" is missing', f"give {path} a value"
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(detail["input"], dict | list | tuple):
        # A whole section is not repeated: it may hold what nobody should read in a log.
        return f"{path or 'as a whole'}: {message}", ""
    return f"{path or 'config'} = {repr(detail['input'])[:80]}: {message}", ""


def _names_at(model: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    """Field names that are known where `location` ends; a part that names no field (a union's tag) is passed over."""
    models: set[type[BaseModel]] = {model}
    for part in location:
        named = {m for m in models if part in m.model_fields}
        if named:
            models = {n for m in named for n in _models_in(m.model_fields[str(part)].annotation)}
        elif any(part == m.__name__ for m in models):
            models = {m for m in models if part == m.__name__}
        else:
            models = {m for m in models if _tagged(m, part)} or models
    return {name for m in models for name in m.model_fields}


def _tagged(model: type[BaseModel], tag: int | str) -> bool:
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for argument in get_args(annotation) for model in _models_in(argument)}


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f"known: {', '.join(known)}" if known else "there are none yet"
    return f'did you mean "{close[0]}"? ({listed})' if close else listed
