"""What a model knows of a corpus of named pictures: names for pictures, pictures for names, with controls.

    python examples/emoji/measure.py models:/oneflow-emoji@candidate s3://oneflow/shards/emoji --holdout 0.1

Prints one JSON object: for documents that training read (`trained`) and for those it never did (`held_out`)
  name_exact       share of pictures whose name comes out word for word
  name_words       mean F1 of the words of the name; `name_words_shuffled` is the same against another's name
  picture_top1/10  share of names whose picture is nearest to the true one (among the 10 nearest) of all pictures,
                   by squared distance of 16x16 thumbnails; `chance_top10` is 10 by the number of pictures
  picture_rank     median rank of the true picture
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from oneflow_core.data.manifest import Manifest
from oneflow_core.data.reader import ShardReader
from oneflow_core.data.shard import Sample
from oneflow_core.data.source import is_held_out
from oneflow_core.document import TextSegment
from oneflow_core.pipeline import OneFlowPipeline, Prompt
from workflows.corpus.verify import load_manifest

AT_ONCE = 32
Array = NDArray[np.float32]


def samples(manifest: Manifest) -> list[tuple[str, Sample]]:
    """All documents with their keys."""
    found = []
    for shard in manifest.shards:
        with ShardReader(manifest.shard_url(shard)) as reader:
            found += [(entry.key, reader[n]) for n, entry in enumerate(reader.index.samples)]
    return found


def name_of(sample: Sample) -> str:
    """The text of the document."""
    return "".join(s.text for s in sample.document.segments if isinstance(s, TextSegment)).strip()


def thumbnail(image: Image.Image) -> Array:
    """RGB in 16x16, [768] in 0 to 1."""
    small = image.convert("RGB").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel() / np.float32(255)


def decoded(pipeline: OneFlowPipeline, latents: Sequence[NDArray[np.floating]]) -> list[Image.Image]:
    """The pictures that the codec makes of latents [C, h, w]: what a perfect model would give."""
    images = []
    for start in range(0, len(latents), AT_ONCE):
        batch = np.stack(latents[start : start + AT_ONCE]).astype(np.float32)
        images += [
            Image.fromarray(p) for p in np.asarray(pipeline.parts.codec.decode(torch.from_numpy(batch)))
        ]
    return images


def f1(said: str, true: str) -> float:
    """F1 of the sets of words."""
    a, b = set(said.split()), set(true.split())
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def answers(pipeline: OneFlowPipeline, prompts: list[Prompt], seed: int) -> list[str | Image.Image]:
    """What the model gives for each prompt, with the sampler's defaults."""
    made: list[str | Image.Image] = []
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        for document in pipeline(part, seeds=[seed + start + n for n in range(len(part))]):
            made.append(document.images[0] if document.images else document.text.strip())
    return made


def measured(
    pipeline: OneFlowPipeline, chosen: list[int], names: list[str], pictures: list[Image.Image], seed: int
) -> dict[str, float]:
    """The figures of one part."""
    said = [str(t) for t in answers(pipeline, [Prompt((pictures[n],), "text") for n in chosen], seed)]
    made = answers(pipeline, [Prompt((names[n],), "image") for n in chosen], seed)
    every = np.stack([thumbnail(p) for p in pictures])
    ranks = []
    for n, image in zip(chosen, made, strict=True):
        assert isinstance(image, Image.Image)
        far = np.square(every - thumbnail(image)).sum(1)
        ranks.append(1 + int((far < far[n]).sum()))
    true = [names[n] for n in chosen]
    return {
        "documents": len(chosen),
        "name_exact": float(np.mean([s == t for s, t in zip(said, true, strict=True)])),
        "name_words": float(np.mean([f1(s, t) for s, t in zip(said, true, strict=True)])),
        "name_words_shuffled": float(
            np.mean([f1(s, t) for s, t in zip(said, true[1:] + true[:1], strict=True)])
        ),
        "picture_top1": float(np.mean(np.array(ranks) == 1)),
        "picture_top10": float(np.mean(np.array(ranks) <= 10)),
        "chance_top10": 10 / len(pictures),
        "picture_rank": float(np.median(ranks)),
    }


def main() -> None:
    """Loads the model, walks the corpus, prints the figures."""
    parser = argparse.ArgumentParser(
        description="names for pictures and pictures for names, against the truth"
    )
    parser.add_argument("model", help="a directory, a URL, models:/NAME@ALIAS")
    parser.add_argument("corpus", help="URL of the sharded corpus")
    parser.add_argument("--holdout", type=float, required=True, help="data.holdout of the training run")
    parser.add_argument("--number", type=int, default=100, help="documents of each part, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipeline = OneFlowPipeline.from_pretrained(arguments.model)
    found = samples(load_manifest(arguments.corpus))
    names, pictures = [name_of(s) for _, s in found], decoded(pipeline, [s.latents[0] for _, s in found])
    figures: dict[str, object] = {"model": dict(pipeline.identity), "pictures": len(pictures)}
    for part, held in (("trained", False), ("held_out", True)):
        mine = [n for n, (key, _) in enumerate(found) if is_held_out(key, arguments.holdout) == held]
        drawn = np.random.default_rng(arguments.seed).permutation(mine)[: arguments.number].tolist()
        figures[part] = measured(pipeline, drawn, names, pictures, arguments.seed)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
