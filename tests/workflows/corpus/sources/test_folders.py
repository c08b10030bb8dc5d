"""Folders and tars with captions in the other places where people put them."""

import json
from pathlib import Path

import pytest

from tests.reference import shared
from tests.workflows.corpus.inputs import png, tar
from tests.workflows.corpus.sources.reading import read, reasons, seen


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_metadata_file_names_the_images(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    (tmp_path / "secret.png").write_bytes(png(2))
    rows = [("a.png", "one, two"), ("gone.png", "x"), ("../secret.png", "y")]
    if name.endswith("csv"):
        text = "file_name,text\r\n" + "".join(f'{file},"{caption}"\r\n' for file, caption in rows)
    else:
        text = "\n".join(json.dumps({"file_name": file, "text": caption}) for file, caption in rows)
    (folder / name).write_text(text)
    drafts, refused = read("folder", folder)
    assert not refused and seen(drafts[0]) == [(png(1), "auto"), ("one, two", "auto")]
    assert [reasons(d) for d in drafts[1:]] == [["image missing"], ["image outside its place"]]


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("txt", b"said"),
        ("caption", b"said"),
        ("text", b"said"),
        ("json", b'{"caption": "said"}'),
        ("json", b'{"TEXT": "said"}'),
        ("TXT", b"\xef\xbb\xbfsaid"),
    ],
)
def test_captions_under_usual_names(tmp_path: Path, suffix: str, data: bytes) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for folder in (tmp_path / "in", tmp_path / "in" / "deep"):
        (folder / "k.PNG").write_bytes(png(1))
        (folder / f"k.{suffix}").write_bytes(data)
    drafts, refused = read("folder", tmp_path / "in")
    assert not refused and [seen(d)[1][0] for d in drafts] == ["said", "said"]
    path = tar(tmp_path / "a.tar", [("k.png", png(1)), (f"k.{suffix}", data)])
    assert seen(read("webdataset", path)[0][0])[1] == ("said", "auto")


def test_questions_out_of_a_tar() -> None:
    columns = {"question": "json.qa.0.question", "answer": "json.qa.0.answer"}
    drafts, refused = read("webdataset", next(shared("easy_vqa").glob("*.tar")), columns=columns)
    assert len(drafts) == 1200 and not refused
    assert seen(drafts[0])[1:] == [("what is the blue shape?", "prompt"), ("rectangle", "target")]
