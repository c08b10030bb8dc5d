"""Object detectors by transformers' classes, with the names of classes that GenEval uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oneflow_core.encoders.checkpoints import loading, quiet_loading, read_image_processor, read_model
from oneflow_core.encoders.dual import DualEncoder
from oneflow_core.encoders.identity import encoder_id, read_name
from oneflow_core.metrics.geneval import COLOUR_TEMPLATES, COLOURS, THRESHOLD, Detection

NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "sofa": "couch",
    "tvmonitor": "tv",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
}
"""COCO's names, and those of checkpoints that follow Pascal VOC, to GenEval's."""


class Detector:
    """Boxes of the objects in a picture. Never trains."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        """Wraps a model for object detection with its PIL image processor."""
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        labels = {int(n): str(label) for n, label in model.config.id2label.items()}
        self.labels = {n: NAMES.get(label, label) for n, label in labels.items()}
        self.id = encoder_id(name, {"labels": sorted(labels.items())}, model)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: str = "cpu") -> Detector:
        """Loads a directory or a hub name; weights from safetensors alone, and no code of the checkpoint is run.

        Raises:
            EncoderError: nothing there, or a model of another kind.
        """
        import transformers

        source = str(name_or_path)
        mend = "name a directory or a hub repository of a model for object detection (RT-DETR, YOLOS, ...)"
        with quiet_loading(), loading("object detector", repr(source), mend):
            model = read_model(transformers.AutoModelForObjectDetection, source)
            processor = read_image_processor(source)
        return cls(model.to(device), processor, read_name(source, None))

    @torch.inference_mode()
    def detect(self, image_HWC: NDArray[np.uint8], least: float = THRESHOLD) -> list[Detection]:
        """What is seen in a picture, uint8 [H, W, 3], with more than `least` confidence."""
        inputs = self.processor([image_HWC], return_tensors="pt", input_data_format="channels_last")
        outputs = self.model(**{k: v.to(self.model.device) for k, v in inputs.items() if k != "labels"})
        sizes = torch.tensor([image_HWC.shape[:2]])
        found = self.processor.post_process_object_detection(outputs, threshold=least, target_sizes=sizes)[0]
        return [
            Detection(self.labels[int(label)], float(score), (box[0], box[1], box[2], box[3]))
            for score, label, box in zip(
                found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True
            )
        ]


class Colours:
    """Names colours of objects by a CLIP or a SigLIP, as GenEval does; boxes are cut out, without masks."""

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        self._texts: dict[str, torch.Tensor] = {}

    def __call__(self, image_HWC: NDArray[np.uint8], name: str, found: Sequence[Detection]) -> list[str]:
        """The colour of each of some objects of a class."""
        if name not in self._texts:
            texts = [t.format(c=colour, name=name) for colour in COLOURS for t in COLOUR_TEMPLATES]
            embedded = self.encoder.embed_texts(texts)[0].view(len(COLOURS), len(COLOUR_TEMPLATES), -1)
            self._texts[name] = torch.nn.functional.normalize(embedded.mean(1), dim=-1)
        seen = self.encoder.embed_images([_cut(image_HWC, one) for one in found])
        return [COLOURS[best] for best in (seen @ self._texts[name].T).argmax(1).tolist()]


def _cut(image_HWC: NDArray[np.uint8], found: Detection) -> NDArray[np.uint8]:
    """The box, at least a pixel wide and high; what of it lies outside the picture is black, as PIL's crop has it."""
    from PIL import Image

    left, top, right, bottom = (round(v) for v in found.box)
    box = (left, top, max(right, left + 1), max(bottom, top + 1))
    return np.asarray(Image.fromarray(image_HWC).crop(box))
