"""Small random CLIPs and SigLIPs on disk, laid out as the hub's repositories are, with real tokenizer files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

WORDS = 16
"""Positions of the text towers."""
CAPTIONS = [
    "a red circle",
    "Two blue stars, near a cat's box!",
    "the dog isn't here",
    "  A PHOTO of 3 trees  ",
    "",
    "a black dog wearing headphones looks at the camera as an orange cat walks in the background of a room",
]
"""The last does not fit into the text towers."""
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
MEAN_STD = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Blocks of colour, uint8 [H, W, 3], each of a size of its own."""
    rng = np.random.default_rng(seed)
    return [
        np.kron(
            rng.integers(0, 256, (*rng.integers(2, 6, 2), 3)), np.ones((rng.integers(7, 20), 11, 1))
        ).astype(np.uint8)
        for _ in range(count)
    ]


def tiny_clip(directory: Path, seed: int = 0) -> Path:
    """A CLIP of 32 pixels, whose tokenizer is a byte-level BPE in CLIP's format with the captions' words."""
    tokenizer = clip_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = TOWER | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": WORDS}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    _save(directory, transformers.CLIPModel, config, seed)
    tokenizer.save_pretrained(directory)
    transformers.CLIPImageProcessorPil(**size).save_pretrained(directory)
    return directory


def clip_tokenizer() -> Any:
    merges: dict[tuple[str, str], str] = {}
    for word in dict.fromkeys(re.findall("[a-z]+", " ".join([*CAPTIONS, "depicts"]).lower())):
        left = word[0]
        for place, letter in enumerate(word[1:], 2):
            right = letter + ("</w>" if place == len(word) else "")
            merges[left, right] = left + right
            left += right
    # CLIP has every byte twice, the second time at the end of a word, and its specials last.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merges.values()]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=WORDS)


def tiny_siglip(directory: Path, seed: int = 0, naflex: bool = False) -> Path:
    """A SigLIP of 32 pixels, or a SigLIP 2 of any size of up to 16 patches, with a SigLIP 2 tokenizer."""
    tokenizer = siglip_tokenizer()
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": WORDS, "projection_size": 32}
    sizes = {"num_patches": 16} if naflex else {"image_size": 32}
    kind = "Siglip2" if naflex else "Siglip"
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=TOWER | sizes | {"patch_size": 8}
    )
    _save(directory, getattr(transformers, f"{kind}Model"), config, seed)
    tokenizer.save_pretrained(directory)
    frame = {"patch_size": 8, "max_num_patches": 16} if naflex else {"size": {"height": 32, "width": 32}}
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**frame, **MEAN_STD)
    processor.save_pretrained(directory)
    return directory


def siglip_tokenizer() -> Any:
    learner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    learner.train_from_iterator(
        CAPTIONS * 2, trainers.BpeTrainer(vocab_size=120, special_tokens=specials, show_progress=False)
    )
    learnt = json.loads(learner.to_str())["model"]
    # The settings with which google/siglip2-* was converted.
    tokenizer = transformers.Siglip2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        padding_side="right",
        model_input_names=["input_ids"],
    )
    ending = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = ending
    return tokenizer


def _save(directory: Path, kind: Any, config: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model = kind(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            # Weights as new models have them give all texts nearly one embedding.
            if value.dim() > 1:
                value.mul_(8 if "embedding" in name else 3)
        if hasattr(model, "logit_bias"):
            model.logit_scale.fill_(1.5)
            model.logit_bias.fill_(-2.0)
    model.save_pretrained(directory)
