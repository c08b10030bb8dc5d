"""Questions about images: VQAv2 (questions and annotations apart), TextVQA and VizWiz (one list of both)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.answers import chosen
from workflows.corpus.sources.drafting import Plan, drafts, key_of, plan_of
from workflows.corpus.sources.files import Files
from workflows.corpus.sources.images import Images, Pending
from workflows.corpus.sources.join import Join
from workflows.corpus.sources.json_rows import DOCUMENTS, LINES, items, json_rows, layout
from workflows.corpus.sources.protocol import Draft, Picture, Reader, Refused, same_stem
from workflows.corpus.sources.rows import RowError, field_of, fill, first_of, said, text_of

PROVENANCE = {"question_id": "question_id", "image": "image_id", "url": "url"}
_IMAGES = ("image", "image_path", "file_name", "image_name")
_URLS = ("flickr_original_url", "coco_url", "image_url", "url")


class VqaReader(Reader):
    """The image and the question are the prompt; the target is the most common answer, of equal ones the first."""

    main = (*DOCUMENTS, *LINES)

    def is_main(self, path: str) -> bool:
        """Any JSON but one of annotations, which go with the questions."""
        return super().is_main(path) and "annotations" not in path.rpartition("/")[2].lower()

    def beside(self, name: str) -> tuple[str, ...]:
        """Images of the same stem, and annotations that are named as the questions are."""
        low = name.replace("questions", "annotations")
        named = {low, low.replace("OpenEnded_", "")} - {name} if "questions" in name else set()
        return (*same_stem(name, self.main, ".tar", "/"), *sorted(named))

    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """One draft or refusal for each question."""
        named = set(self.beside(files.main))
        others = [n for n in files.by_name if n.startswith("annotations/") or (n in named and _is_json(n))]
        with Join() as answers:
            subset: list[str] = []
            for name in [*others, files.main]:
                with files.twice(name) as stream:
                    _index(stream, name, answers, subset if name == files.main else None)
            joined = _Joined(source, files.images, answers, next(iter(subset), ""))
            yield from drafts(_questions(files), joined.plan, files.images)


class _Joined:
    def __init__(self, source: SourceConfig, images: Images, answers: Join, subset: str) -> None:
        self._source, self._images, self._answers, self._subset = source, images, answers, subset

    def plan(self, key: str, row: Mapping[str, Any]) -> Plan:
        about = {**(self._answers.get(row.get("question_id")) or {}), **row}
        question = field_of(about, self._source.column("question"))
        if question is None:
            raise RowError("columns missing")
        mapped = self._source.columns.get("answer")
        answer = (
            field_of(about, mapped)
            if mapped
            else first_of(about, ("answers", "answer", "multiple_choice_answer"))
        )
        if answer is None:
            raise RowError("answer missing")
        found, several = chosen(answer)
        picture = self._picture(about)
        segments: Any = [(picture, "prompt"), (text_of(question), "prompt"), (found, "target")]
        about.setdefault("image_id", first_of(about, _IMAGES))
        key = key_of(first_of(about, (self._source.column("id"), "question_id", "id")), key)
        return plan_of(key, segments, about, self._source, PROVENANCE, {"answers": said(several)})

    def _picture(self, row: Mapping[str, Any]) -> Picture | Pending:
        mapped = self._source.columns.get("image")
        if mapped is not None:
            template = mapped if "{" in mapped else f"{{{mapped}}}"
            return self._images.named(fill(template, lambda name: field_of(row, name), "image missing"))
        image = first_of(row, _IMAGES)
        if image is not None:
            return self._images.picture(image)
        image_id = row.get("image_id")
        if isinstance(image_id, int) and not isinstance(image_id, bool):
            split = self._subset.replace("test-dev2015", "test2015")
            coco = (
                [f"COCO_{split}_{image_id:012}.jpg", f"{split}/COCO_{split}_{image_id:012}.jpg"]
                if split
                else []
            )
            return self._images.named(*coco, f"{image_id:012}.jpg", str(image_id))
        if isinstance(image_id, str):
            return self._images.named(image_id)
        url = first_of(row, _URLS)
        if url is None:
            raise RowError("image missing")
        return self._images.picture(url)


def _is_json(name: str) -> bool:
    return name.lower().endswith((*DOCUMENTS, *LINES))


def _index(stream: BinaryIO, name: str, answers: Join, subset: list[str] | None) -> None:
    """Hold what a file says of answers by question; of the questions' own file, only where it keeps them apart."""
    kind = layout(stream, name)
    if kind == "lines" and subset is None:
        for line in stream:
            _hold(json.loads(line), answers)
    if kind != "object" and subset is not None:
        return
    prefixes = ["item"] if kind == "array" else ["annotations.item", "data_subtype"]
    for number, value in items(stream, prefixes):
        if number == 0:
            _hold(value, answers)
        elif subset is not None and isinstance(value, str):
            subset.append(value)


def _hold(value: Any, answers: Join) -> None:
    if isinstance(value, Mapping) and value.get("question_id") is not None:
        kept = {k: value[k] for k in value if k not in ("question", "image")}
        answers.put(value["question_id"], kept)


def _questions(files: Files) -> Iterator[tuple[str, Any]]:
    with files.twice() as stream:
        kind = layout(stream, files.main)
        if kind == "object":
            number = -1
            for number, (_, row) in enumerate(items(stream, ["questions.item", "data.item"])):
                yield f"row-{number}", row
            if number < 0:
                yield "row-0", Refused("", "no list of rows")
            return
    yield from json_rows(files)
