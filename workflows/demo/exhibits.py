"""What the report shows of a trained and evaluated model: the first items of each kind, not the best ones."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from workflows.chart import Curve
from workflows.demo.report import Exhibit, ExhibitKind, Insertion, Metric, Part, Picture, Report

if TYPE_CHECKING:
    from oneflow_core.data.manifest import Manifest
    from oneflow_core.pipeline import GeneratedDocument
    from workflows.evaluation.figures import Figure
    from workflows.evaluation.item import Item, Output
    from workflows.evaluation.report import EvaluationReport
    from workflows.training.train import TrainReport

SHOWN: Mapping[str, tuple[ExhibitKind, int]] = {
    "t2i/single": ("image", 8),
    "t2i/multi": ("image", 4),
    "caption/single": ("caption", 4),
    "caption/multi": ("caption", 4),
    "vqa": ("answer", 4),
    "story": ("story", 1),
}
"""Task -> where its items stand, and how many of them."""
CURVES = {
    "train/loss": "loss",
    "train/text/ce": "text: tokens (cross-entropy)",
    "train/text/rate_regret": "text: counts (Poisson, from its least)",
    "train/text/zero": "text: empty gaps (BCE)",
    "train/image/mse": "image: squared error",
    "heldout/loss": "held-out loss",
    "train/lr": "learning rate",
}
COMBINATIONS = {
    "heldout_pair": "Unseen pairs of shape and colour",
    "heldout_triple": "Unseen triples of shape, colour and place",
}


def compose(
    trained: TrainReport, evaluated: EvaluationReport, model: str, manifest: Manifest, command: str = ""
) -> Report:
    """The report without stages and memory, which are known only when this is done."""
    judged = evaluated.judged
    rows = list(zip(judged.items, judged.outputs, judged.scores, strict=True))
    return Report(
        title="OneFlow: what the demo made",
        model=model,
        run_id=trained.run_id or "",
        corpus_version=trained.corpus_version,
        stages=(),
        metrics=metrics(evaluated),
        exhibits=tuple(exhibits(rows)),
        insertions=insertions(model, judged.items),
        curves=curves(trained.run_id),
        promoted=evaluated.promoted,
        facts=facts(trained, evaluated, manifest, command),
    )


def exhibits(rows: Sequence[tuple[Item, Output, Mapping[str, float]]]) -> Iterator[Exhibit]:
    """The first items of each task that were never seen, as they came out."""
    for task, (kind, count) in SHOWN.items():
        chosen = [
            r for r in rows if r[0].task == task and r[0].split == "heldout_random" and not r[0].control
        ]
        for item, output, scores in chosen[:count]:
            words, right = verdict(item, output, scores)
            given = tuple(_part(p, "A picture that training never saw") for p in item.prompt)
            about = next((p for p in item.prompt if isinstance(p, str)), "the picture")
            made = tuple(_part(p, f"What the model drew for: {about}") for p in output.parts)
            yield Exhibit(kind, given, made, words, right)


def verdict(item: Item, output: Output, scores: Mapping[str, float]) -> tuple[str, bool | None]:
    """What the checker says, in words."""
    if output.error:
        return f"failed: {output.error}", False
    kind = item.task.split("/")[0]
    if kind == "vqa":
        right = scores.get("accuracy") == 1
        return ("right" if right else f"the answer is: {item.truth}"), right
    right = scores.get("exact") == 1
    if right:
        return "all of it right", True
    if kind == "t2i":
        wrong = [n for n in ("count", "shape", "colour", "size", "position") if scores.get(n, 1) < 1]
        return (f"wrong: {', '.join(wrong)}" if wrong else "not clean enough to be read"), False
    if kind == "story":
        return f"{scores.get('images_exact', 0):.0%} of the pictures follow the text", False
    return f"not exact: {scores.get('recall', 0):.0%} of the objects named rightly", False


def metrics(evaluated: EvaluationReport) -> tuple[Metric, ...]:
    """Every figure that is a number: those of the gate first, combinations in tables of their own."""
    checks = {c.metric: c for c in evaluated.verdict.checks} if evaluated.verdict else {}
    ordered = sorted(evaluated.figures.items(), key=lambda entry: (entry[0] not in checks, _split(entry[0])))
    return tuple(
        Metric(
            name=name,
            value=figure.estimate.value,
            controls=dict(figure.controls),
            threshold=checks[name].bound if name in checks else "",
            holds=checks[name].holds if name in checks else None,
            interval=(figure.estimate.low, figure.estimate.high),
            count=figure.estimate.count,
            group=COMBINATIONS.get(_split(name), ""),
        )
        for name, figure in ordered
        if _measured(figure)
    )


def insertions(model: str, items: Sequence[Item]) -> tuple[Insertion, ...]:
    """The longest of some captions, with when each piece came; the model runs here for that."""
    from PIL import Image

    from oneflow_core.pipeline import OneFlowPipeline, Prompt

    asked = [i for i in items if i.task == "caption/multi" and not i.control][:4]
    pictures = [Image.open(io.BytesIO(p)) for i in asked for p in i.prompt if isinstance(p, bytes)]
    if not pictures:
        return ()
    pipeline = OneFlowPipeline.from_pretrained(model)
    documents = pipeline([Prompt((p,), "text") for p in pictures], seeds=[i.seed for i in asked])
    longest: GeneratedDocument = max(documents, key=lambda d: len(d.text))
    return tuple(Insertion(piece.text, piece.time) for piece in longest.trace.insertions)


def curves(run_id: str | None) -> tuple[Curve, ...]:
    """Metric histories of the run, from MLflow."""
    if run_id is None:
        return ()
    from workflows.tracking import client_of

    client = client_of(os.environ["MLFLOW_TRACKING_URI"])
    found = []
    for key, name in CURVES.items():
        history = sorted((m.step, float(m.value)) for m in client.get_metric_history(run_id, key))
        if history:
            found.append(Curve(name, tuple(history)))
    return tuple(found)


def facts(
    trained: TrainReport, evaluated: EvaluationReport, manifest: Manifest, command: str
) -> dict[str, str]:
    """Further lines for the head of the page."""
    totals = manifest.totals
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    known = {
        "Corpus size": f"{totals.samples:,} documents, {totals.images:,} images, {len(manifest.shards)} shards",
        "Training": f"{trained.step:,} steps in {trained.elapsed_s:.0f} s, the best of them {trained.best_step:,}",
        "Evaluation": f"{len(evaluated.judged.items):,} items, {evaluated.failed} failed, in {evaluated.seconds:.0f} s",
        "Machine": machine,
    }
    if command:
        known["Command"] = command
    if evaluated.verdict:
        known["Verdict"] = evaluated.verdict.why
    return known


def _part(part: str | bytes, alt: str) -> Part:
    return part if isinstance(part, str) else Picture(part, alt)


def _split(name: str) -> str:
    last = name.rsplit("/", 1)[-1]
    return last if last in COMBINATIONS else ""


def _measured(figure: Figure) -> bool:
    return figure.estimate.value == figure.estimate.value
