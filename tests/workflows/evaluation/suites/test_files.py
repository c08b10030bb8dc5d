"""Where pictures are found: by the names that datasets give them, in directories and behind URLs."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from workflows.errors import UsageError
from workflows.evaluation.suites import coco_captions, coco_fid
from workflows.evaluation.suites.files import Pictures, chosen, seed_of

from .made import config, folder, png


def test_pictures_are_found_under_the_names_of_datasets(tmp_path: Path) -> None:
    names = ["COCO_val2014_000000000042.jpg", "000000000043.png", "n7.jpeg", "VizWiz_val_1.jpg", "notes.txt"]
    folder(tmp_path, names[:4], "PNG")
    (tmp_path / names[4]).write_text("x")
    pictures = Pictures("images", str(tmp_path), "vqa")
    asked = {
        "42": 0,
        "000000000042": 0,
        "43": 1,
        "n7": 2,
        "n7.jpeg": 2,
        "VizWiz_val_1.jpg": 3,
        "vg/n7.jpeg": 2,
    }
    assert {
        name: (pictures.find(name) or "").endswith(names[n]) for name, n in asked.items()
    } == dict.fromkeys(asked, True)
    assert pictures.find("44") is None and pictures.find("notes.txt") is None and len(pictures.urls) == 4


def test_a_name_in_two_directories_is_refused_where_it_is_looked_up_and_counts_twice_where_it_is_not(
    tmp_path: Path,
) -> None:
    for split in ("train", "val"):
        folder(tmp_path / split, ["1.png", f"{split}.png"])
    pictures = Pictures("images", str(tmp_path), "vqa")
    assert pictures.find("train") and len(pictures.urls) == 4
    with pytest.raises(UsageError, match="picture 1 is there twice"):
        pictures.find("1")
    (tmp_path / "p.txt").write_text("a cat\n")
    given = config(
        "coco-fid", data__prompts=tmp_path / "p.txt", data__references=tmp_path, features__kind="embedded"
    )
    assert coco_fid.rules(given)["references"]["count"] == 4


def test_files_are_read_behind_urls() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/bench/captions.json", b'{"7": ["a cat"]}')
    store.pipe("/bench/images/7.png", png())
    given = config(
        "coco-captions", data__captions="memory://bench/captions.json", data__images="memory://bench/images"
    )
    (item,) = coco_captions.items(given)
    assert item.prompt == (png(),)
    with pytest.raises(UsageError, match="memory://bench/none.json: there is no such file"):
        coco_captions.items(config("coco-captions", data__captions="memory://bench/none.json"))


def test_choices_and_seeds_depend_on_names_and_seed_alone() -> None:
    names = [str(n) for n in range(50)]
    assert chosen(names, None, 0) == names == chosen(names, 50, 0)
    one = chosen(names, 10, 3)
    assert one == chosen(names, 10, 3) != chosen(names, 10, 4) and one == sorted(one, key=int)
    seeds = {seed_of(s, n) for s in (0, 1) for n in names}
    assert len(seeds) == 100 and all(0 <= seed < 2**31 for seed in seeds)
