"""Packs as files: tensors by name in safetensors, the rest as JSON. Nothing is executed when they are read."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from oneflow_core.model.attention import AttentionBucket, AttentionPlan
from oneflow_core.model.inputs import ModelInputs
from oneflow_core.packing import Pack

KINDS = {kind.__name__: kind for kind in (Pack, ModelInputs, AttentionPlan, AttentionBucket)}
KIND, TENSOR = "kind", "tensor"


def packs_to_files(packs: Sequence[Pack]) -> tuple[bytes, list[Any]]:
    """The tensors of `packs` as safetensors, and a JSON tree a pack that names them."""
    tensors: dict[str, Tensor] = {}
    trees = [_tree(pack, str(number), tensors) for number, pack in enumerate(packs)]
    return save(tensors), trees


def packs_of_files(data: bytes, trees: Sequence[Any]) -> list[Pack]:
    """What `packs_to_files` was given; ValueError or LookupError when the two do not fit."""
    tensors = load(data)
    return [_value(tree, tensors) for tree in trees]


def _tree(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {TENSOR: name}
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {KIND: type(value).__name__} | {n: _tree(v, f"{name}.{n}", tensors) for n, v in fields.items()}
    if isinstance(value, list | tuple):
        return [_tree(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
    return value


def _value(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_value(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if TENSOR in tree:
        return tensors[tree[TENSOR]]
    kind = KINDS[tree[KIND]]
    return kind(**{name: _value(item, tensors) for name, item in tree.items() if name != KIND})
