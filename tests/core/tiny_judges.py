"""Small random models that answer questions and see objects, laid out on disk as the hub's repositories are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = {"height": 32, "width": 32}
BERT = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[DEC]",
    "[ENC]",
    "is",
    "there",
    "a",
    "dog",
    "?",
    "yes",
    "no",
]
CHAT = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "is", "there", "dog", "yes", "no", "USER:", "ASSISTANT:"]
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


def tiny_vilt(directory: Path, seed: int = 0) -> Path:
    """A classifier of two answers."""
    config = transformers.ViltConfig(
        **TOWER,
        vocab_size=len(BERT),
        image_size=32,
        patch_size=8,
        max_position_embeddings=32,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    image = transformers.ViltImageProcessorPil(size={"shortest_edge": 32})
    processor = transformers.ViltProcessor(image, _bert())
    return _saved(directory, transformers.ViltForQuestionAnswering, config, processor, seed)


def tiny_blip(directory: Path, seed: int = 0) -> Path:
    """A generator of answers."""
    text = TOWER | {"vocab_size": len(BERT), "encoder_hidden_size": 32, "max_position_embeddings": 32}
    text |= {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3, "projection_dim": 16}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16
    )
    processor = transformers.BlipProcessor(transformers.BlipImageProcessorPil(size=SQUARE), _bert())
    return _saved(directory, transformers.BlipForQuestionAnswering, config, processor, seed)


def tiny_llava(directory: Path, seed: int = 0) -> Path:
    """A chat model that sees."""
    words = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(CHAT)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    vision = transformers.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8)
    text = transformers.LlamaConfig(
        **TOWER, vocab_size=len(CHAT), bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    image = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    processor = transformers.LlavaProcessor(
        image,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return _saved(directory, transformers.LlavaForConditionalGeneration, config, processor, seed)


def tiny_yolos(directory: Path, seed: int = 0) -> Path:
    """A detector of three classes, one of which GenEval calls otherwise."""
    labels = {0: "mouse", 1: "cat", 2: "dog"}
    config = transformers.YolosConfig(
        **TOWER,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=5,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    processor = transformers.YolosImageProcessorPil(size=SQUARE)
    return _saved(directory, transformers.YolosForObjectDetection, config, processor, seed)


def tiny_dino(directory: Path, seed: int = 0) -> Path:
    """A DINOv2 of 28 pixels."""
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    return _saved(
        directory, transformers.Dinov2Model, config, transformers.BitImageProcessorPil(**crop), seed
    )


def _bert() -> Any:
    return transformers.BertTokenizer(vocab={word: place for place, word in enumerate(BERT)})


def _saved(directory: Path, kind: Any, config: Any, processor: Any, seed: int) -> Path:
    torch.manual_seed(seed)
    kind(config).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
