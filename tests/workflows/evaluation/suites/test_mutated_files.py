"""Files that were damaged on the way: each is read, in part with its bad rows counted, or refused; never a crash."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.metrics.dpg import read_questions, score_bench
from oneflow_core.metrics.geneval import read_metadata
from workflows.errors import UsageError
from workflows.evaluation.suites.files import File
from workflows.evaluation.suites.prompts import read_captions, read_prompts
from workflows.evaluation.suites.vqa_files import read_questions as read_vqa

from .test_dpg_bench import HEADER, ROWS
from .test_geneval import LINES
from .test_vqa import ANNOTATIONS, PEOPLE, QUESTIONS

COCO = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
KARPATHY = {"images": [{"filename": "1.png", "split": "test", "sentences": [{"raw": "a cat"}]}]}
PLAIN = {"1": ["a cat", "one cat"], "2": ["a dog"]}
TEXTVQA = {"data": [{"question_id": 1, "image_id": "42", "question": "?", "answers": PEOPLE}]}
VIZWIZ = [{"image": "43", "question": "?", "answers": [{"answer": a} for a in PEOPLE]}]
GQA = {"05": {"imageId": "42", "question": "?", "answer": "red", "types": {"structural": "query"}}}
ODD = (None, 3, -1, 1.5, True, "", "x", [], {}, [None], {"a": 1}, "\u2028", [[]])


def file(field: str, content: str | bytes, name: str = "f.json") -> File:
    return File(field, name, content.encode() if isinstance(content, str) else content)


def mutated(tree: Any, rng: np.random.Generator) -> Any:
    """The tree with one node replaced, removed or doubled."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in (
            list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        ):
            places.append((node, key))
            walk(node[key])

    walk(tree)
    node, key = places[int(rng.integers(len(places)))]
    how = int(rng.integers(3))
    if how == 0:
        node[key] = ODD[int(rng.integers(len(ODD)))]
    elif how == 1:
        del node[key]
    elif isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    return tree


JSONS: dict[str, tuple[Any, Callable[[File], Any]]] = {
    "coco": (COCO, read_captions),
    "karpathy": (KARPATHY, lambda f: read_captions(f, "test")),
    "plain": (PLAIN, read_captions),
    "vqa": (QUESTIONS, lambda f: read_vqa(f, file("annotations", json.dumps(ANNOTATIONS)))),
    "annotations": (ANNOTATIONS, lambda f: read_vqa(file("questions", json.dumps(QUESTIONS)), f)),
    "textvqa": (TEXTVQA, lambda f: read_vqa(f, None)),
    "vizwiz": (VIZWIZ, lambda f: read_vqa(f, None)),
    "gqa": (GQA, lambda f: read_vqa(f, None)),
}


@pytest.mark.parametrize("name", JSONS)
def test_trees_with_a_changed_node_are_read_or_refused(name: str) -> None:
    tree, reader = JSONS[name]
    reader(file("captions" if name in ("coco", "karpathy", "plain") else "questions", json.dumps(tree)))
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = tree
        for _ in range(int(rng.integers(1, 4))):
            damaged = mutated(damaged, rng) if damaged else damaged
        try:
            found = reader(file("annotations" if name == "annotations" else "captions", json.dumps(damaged)))
        except UsageError as error:
            refused += 1
            assert "data." in str(error) and "give " in str(error) or "set data." in str(error)
        else:
            kept = getattr(found, "references", None) or getattr(found, "asked", {})
            assert all(isinstance(key, str) for key in kept)
            assert all(isinstance(why, str) and why for why in found.refused.values())
    assert name in ("annotations",) or refused < 300


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bytes_that_were_changed_are_read_or_refused(data: st.DataObject) -> None:
    texts = {
        "captions": json.dumps(PLAIN),
        "questions": HEADER + ROWS,
        "metadata": LINES,
        "prompts": "id,caption\nx,a cat\ny,a dog\n",
    }
    field = data.draw(st.sampled_from(sorted(texts)))
    content = bytearray(texts[field].encode())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    given_file = file(field, bytes(content), "f.csv" if field == "prompts" else "f.json")
    try:
        if field == "captions":
            read_captions(given_file)
        elif field == "prompts":
            read_prompts(given_file)
        elif field == "metadata":
            prompts, refused = read_metadata(given_file.text().split("\n"))
            assert all(p.include for p in prompts.values()) and all(refused.values())
        else:
            _score_what_is_left(given_file)
    except UsageError as error:
        assert f"data.{field}" in str(error)


def _score_what_is_left(given_file: File) -> None:
    try:
        found = read_questions(io.StringIO(given_file.text(), newline=""))
    except ValueError as error:
        assert "no column" in str(error) or "CSV" in str(error)  # noqa: PT017
        return
    if found.prompts:
        score_bench(
            found.prompts, {n: {q.number: True for q in p.questions} for n, p in found.prompts.items()}
        )
