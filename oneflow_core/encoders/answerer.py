"""Models that answer questions about pictures, by transformers' classes: ViLT, BLIP, and chat models that see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from oneflow_core.encoders.checkpoints import loading, model_kind, quiet_loading, read_model
from oneflow_core.encoders.identity import encoder_id, read_name

CHAT_REQUEST = "{question} Answer with one word."
"""What a chat model is told; it is part of the judge, and of its id."""
MOST_TOKENS = 10
"""Tokens of an answer that is generated."""
KINDS: dict[str, Literal["classifier", "generator"]] = {"vilt": "classifier", "blip": "generator"}
"""How models for visual question answering answer, by their type; all others are talked to."""


class Answerer:
    """Answers of a few words to questions about pictures, the likeliest ones. Never trains."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        """Wraps a model for visual question answering, or one of image and text to text, with its processor."""
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.kind: Literal["classifier", "generator", "chat"] = KINDS.get(model.config.model_type, "chat")
        settings = {"type": model.config.model_type, "request": CHAT_REQUEST, "tokens": MOST_TOKENS}
        self.id = encoder_id(name, settings, model)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: str = "cpu") -> Answerer:
        """Loads a directory or a hub name; weights from safetensors alone, and no code of the checkpoint is run.

        Raises:
            EncoderError: nothing there, or a model of another kind.
        """
        import transformers

        source = str(name_or_path)
        mend = "name a directory or a hub repository of a ViLT, a BLIP, or an image-text-to-text model"
        with quiet_loading(), loading("model that answers questions about pictures", repr(source), mend):
            auto: Any = (
                transformers.AutoModelForVisualQuestionAnswering
                if model_kind(source) in KINDS
                else transformers.AutoModelForImageTextToText
            )
            model = read_model(auto, source)
            processor = transformers.AutoProcessor.from_pretrained(
                source, trust_remote_code=False, backend="pil"
            )
        return cls(model.to(device), processor, read_name(source, None))

    @torch.inference_mode()
    def answer(self, image_HWC: NDArray[np.uint8], questions: Sequence[str]) -> list[str]:
        """One answer a question about one picture, uint8 [H, W, 3]; of a chat model the first line's bare words."""
        if self.kind == "chat":
            return [self._chat(image_HWC, question) for question in questions]
        from PIL import Image

        image, device = Image.fromarray(image_HWC), self.model.device
        answers = []
        for question in questions:
            inputs = self.processor(images=image, text=question, return_tensors="pt").to(device)
            if self.kind == "classifier":
                best = int(self.model(**inputs).logits[0].argmax())
                answers.append(str(self.model.config.id2label[best]))
            else:
                made = self.model.generate(**inputs, max_new_tokens=MOST_TOKENS)
                answers.append(str(self.processor.decode(made[0], skip_special_tokens=True)))
        return answers

    def _chat(self, image_HWC: NDArray[np.uint8], question: str) -> str:
        from PIL import Image

        said = [
            {"type": "image", "image": Image.fromarray(image_HWC)},
            {"type": "text", "text": CHAT_REQUEST.format(question=question)},
        ]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": said}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        made = self.model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False)
        return bare(
            str(self.processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        )


def bare(answer: str) -> str:
    """The first line of an answer in lower case, without marks around it: "Yes." is "yes"."""
    first = next((line for line in answer.splitlines() if line.strip()), "")
    return first.strip().strip(".,!;:\"'").lower()
