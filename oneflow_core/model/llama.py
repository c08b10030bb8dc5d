"""Starting the trunk from a Llama of Hugging Face, as the paper does (Llama 3.2 for 1b and 3b, 3.1 for 8b)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oneflow_core.model.backbone import LLAMA3_CONTEXT, LLAMA3_FAST, LLAMA3_SLOW, Backbone
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.oneflow import OneFlowModel

INDEX = "model.safetensors.index.json"


class LlamaError(ValueError):
    """A checkpoint that is no Llama, or none of the trunk's dimensions; the message names what differs."""


def load_llama(model: OneFlowModel, directory: str | Path) -> None:
    """Copy trunk and token embedding of a Llama in `directory` (config.json and safetensors) into `model`, in place.

    The embedding is copied for the ids that both know, first to last; adapters and heads keep their start. Nothing is
    unpickled.

    Raises:
        LlamaError: files are missing, or dimensions differ.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    root = Path(directory)
    check_llama(model.config, root)
    try:
        files = ["model.safetensors"]
        if (root / INDEX).is_file():
            files = sorted(set(json.loads((root / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        weights: dict[str, Tensor] = {}
        for name in files:
            weights |= load_file(root / Path(name).name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise LlamaError(f"{root}: {error}; give a directory with config.json and safetensors") from error
    copy_llama(model.backbone, weights)
    table = _weight(weights, "embed_tokens.weight")
    with torch.no_grad():
        shared = min(len(table), model.config.vocab_size)
        model.embedding.weight[:shared].copy_(table[:shared])


def check_llama(config: ModelConfig, directory: str | Path) -> None:
    """Compare the trunk's dimensions with the config.json of a Llama in `directory`.

    Raises:
        LlamaError: there is none, or they differ; the message names the first that does and both values.
    """
    try:
        llama = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
        rope = llama.get("rope_parameters") or llama.get("rope_scaling") or {}
        heads = llama["num_attention_heads"]
        theirs_of = {
            "width": llama["hidden_size"],
            "layers": llama["num_hidden_layers"],
            "heads": heads,
            "kv_heads": llama.get("num_key_value_heads", heads),
            "head_dim": llama.get("head_dim") or llama["hidden_size"] // heads,
            "ffn": llama["intermediate_size"],
            "rope_theta": rope.get("rope_theta", llama.get("rope_theta")),
            "rope_scaling": _scaling(rope),
            "norm_eps": llama["rms_norm_eps"],
        }
    except (OSError, ValueError, KeyError) as error:
        raise LlamaError(
            f"{directory}: {error!r} in config.json; give a Llama of Hugging Face's format"
        ) from error
    for name, theirs in theirs_of.items():
        if (ours := getattr(config, name)) != theirs:
            raise LlamaError(
                f"{name} is {ours} in the model and {theirs} in the checkpoint; set model.dims.{name}"
            )


def copy_llama(trunk: Backbone, weights: Mapping[str, Tensor]) -> None:
    """Copy the blocks and the final norm of a Llama, by Hugging Face's names of its weights, into `trunk`, in place.

    Rotary pairs are neighbours here and halves there: rows of the query and key projections change places.
    """
    config = trunk.config

    def paired(weight: Tensor) -> Tensor:
        halves = weight.unflatten(0, (-1, 2, config.head_dim // 2))
        return halves.transpose(1, 2).flatten(0, 2)

    with torch.no_grad():
        trunk.norm.weight.copy_(_weight(weights, "norm.weight"))
        for number, block in enumerate(trunk.children_blocks()):
            of = f"layers.{number}."
            q, k, v, out = (_weight(weights, f"{of}self_attn.{name}_proj.weight") for name in "qkvo")
            gate, up, down = (
                _weight(weights, f"{of}mlp.{name}_proj.weight") for name in ("gate", "up", "down")
            )
            block.attention.qkv.weight.copy_(torch.cat([paired(q), paired(k), v]))
            block.attention.out.weight.copy_(out)
            block.ffn.gate_up.weight.copy_(torch.cat([gate, up]))
            block.ffn.down.weight.copy_(down)
            block.attention_norm.weight.copy_(_weight(weights, f"{of}input_layernorm.weight"))
            block.ffn_norm.weight.copy_(_weight(weights, f"{of}post_attention_layernorm.weight"))


def _weight(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight of the model, with or without the prefix of a language model."""
    for full in (f"model.{name}", name):
        if full in weights:
            return weights[full]
    raise LlamaError(f"the checkpoint has no weight {name}; give a Llama of Hugging Face's format")


def _scaling(rope: Mapping[str, Any]) -> float:
    """The factor of Llama 3's scaling; 1 where there is none."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return 1.0
    bounds = (
        rope.get("original_max_position_embeddings"),
        rope.get("low_freq_factor"),
        rope.get("high_freq_factor"),
    )
    if kind != "llama3" or bounds != (LLAMA3_CONTEXT, LLAMA3_SLOW, LLAMA3_FAST):
        raise LlamaError(f"rotary scaling {dict(rope)} is not Llama 3's; give a Llama 3")
    return float(rope["factor"])
