"""What the suites on outside data are given: files, judges, features."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workflows.config import Config

SuiteName = Literal[
    "shapes",
    "coco-captions",
    "coco-fid",
    "dpg-bench",
    "dpg-bench-shapes",
    "geneval",
    "geneval-shapes",
    "vqa",
    "clip-score",
]


class DataConfig(Config):
    """Files of a benchmark, each a path or an fsspec URL. Nothing is fetched that is not named here."""

    captions: str | None = None
    """COCO's captions JSON, Karpathy's dataset JSON, or a JSON of image name -> captions (coco-captions, coco-fid)."""
    images: str | None = None
    """Directory of the pictures that are asked about (coco-captions, vqa)."""
    prompts: str | None = None
    """Prompts: a line each (.txt), or a column or key "prompt", "caption" or "text" (.jsonl, .csv, .tsv)."""
    questions: str | None = None
    """DPG-Bench's CSV (dpg-bench), or the questions of VQAv2, TextVQA, VizWiz or GQA (vqa)."""
    annotations: str | None = None
    """Answers, where they lie apart from the questions (vqa, in VQAv2's layout)."""
    metadata: str | None = None
    """GenEval's evaluation_metadata.jsonl (geneval)."""
    references: str | None = None
    """Directory of real pictures, or an .npz of their feature statistics (coco-fid)."""
    split: str | None = None
    """Split of Karpathy's dataset JSON, e.g. test; null takes all."""
    allow_missing: bool = False
    """Leave out questions whose picture is not in the directory; they are counted. False refuses to start."""
    longest_side: int = Field(default=1024, ge=32)
    """Pixels; larger pictures are shrunk before they are sent (bicubic, PNG). Smaller ones go as they are."""
    instruction: str = ""
    """Stands behind every question, after a space, e.g. "Answer with a word or a phrase." It moves the figures."""


class JudgeConfig(Config):
    """Who says what a picture shows."""

    kind: Literal["served", "huggingface", "shapes"] = "huggingface"
    """The model under evaluation itself, a model of the hub's layout, or the exact reader of the shapes corpus."""
    answerer: str | None = None
    """Directory or hub name of a ViLT, a BLIP, or an image-text-to-text model, which answers questions."""
    detector: str | None = None
    """Directory or hub name of a model for object detection with COCO's classes (geneval)."""
    colours: str | None = None
    """Directory or hub name of the CLIP that names colours (geneval; officially openai/clip-vit-large-patch14)."""
    device: str = "cpu"
    """Where the judge computes, e.g. cuda:0."""


class FeaturesConfig(Config):
    """What a Frechet distance is computed on."""

    kind: Literal["inception", "dinov2", "siglip", "embedded"] = "inception"
    """Inception alone gives FID; embedded needs nothing and compares with nothing."""
    path: str | None = None
    """The file (inception), or the directory or hub name (dinov2, siglip)."""
    resize: Literal["bilinear", "clean"] = "bilinear"
    """How Inception's 299 pixels are made: as pytorch-fid does (fid) or as clean-fid (fid_clean)."""
    square: int | None = Field(default=256, ge=32)
    """References and generated pictures are cut to a centred square and resized to this side (bicubic); null leaves
    them as they are."""
    device: str = "cpu"
    """Where features are computed, e.g. cuda:0."""


class ClipConfig(Config):
    """What a CLIP score is computed with."""

    path: str | None = None
    """Directory or hub name of a whole CLIP or SigLIP, or "embedded" (a small SigLIP of the shapes corpus)."""
    rule: Literal["percent", "hessel"] = "percent"
    """100 max(cos, 0), as torchmetrics; or 2.5 max(cos, 0) behind "A photo depicts ", as Hessel et al. (2021)."""
    device: str = "cpu"
    """Where it computes, e.g. cuda:0."""
