"""CLIP scores through the suite, on prompts in the files that people have them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oneflow_core.encoders import DualEncoder
from oneflow_core.metrics.clip_score import HESSEL, PERCENT, clip_score
from tests.core.tiny_dual import CAPTIONS, tiny_clip, tiny_siglip
from tests.reference import shared
from workflows.errors import UsageError
from workflows.evaluation.suites import clip_score as suite
from workflows.evaluation.suites.drawings import shuffled_place
from workflows.evaluation.suites.files import pixels

from .made import FAILED, config, drawn, png, written

TEXTS = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[5]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


def small(tmp_path: Path, clip: Path, **values: Any) -> Any:
    prompts = written(tmp_path / "prompts.txt", "\n".join(TEXTS))
    return config("clip-score", **{"data__prompts": prompts, "clip__path": clip} | values)


@pytest.mark.parametrize(("rule", "name"), [(PERCENT, "percent"), (HESSEL, "hessel")])
def test_scores_are_those_of_the_encoder_and_a_failed_item_scores_nothing(
    rule: Any, name: str, tmp_path: Path, clip: Path
) -> None:
    given = small(tmp_path, clip, clip__rule=name)
    items, rules = suite.items(given), suite.rules(given)
    pictures = [png(n) for n in range(3)]
    judged = suite.judge(items, [drawn(p) for p in pictures[:2]] + [FAILED], config=given, rules=rules)
    encoder = DualEncoder.from_pretrained(clip)
    wanted = clip_score(encoder, [pixels(p) for p in pictures[:2]], TEXTS[:2], rule=rule).each
    score = f"clip-score/clip_score_{name}"
    assert [s[score] for s in judged.scores] == pytest.approx([*wanted, 0])
    figure = suite.figures(judged)[score]
    assert figure.estimate.value == pytest.approx(sum(wanted) / 3) and figure.estimate.count == 3
    order = shuffled_place(3)
    assert all(order[n] != n for n in range(3))
    elsewhere = [TEXTS[order[n]] for n in range(2)]
    other = clip_score(encoder, [pixels(p) for p in pictures[:2]], elsewhere, rule=rule).each
    assert figure.controls["shuffled"] == pytest.approx(sum(other) / 3)
    assert rules["encoder"] == encoder.id and rules["rule"]["weight"] == rule.weight
    assert any("1 of 3 items have no picture" in note for note in judged.notes)


def test_long_prompts_are_counted_and_a_siglip_names_its_figure(tmp_path: Path, clip: Path) -> None:
    given = small(tmp_path, clip)
    judged = suite.judge(suite.items(given), [drawn(png(n)) for n in range(3)], config=given)
    assert judged.notes == ["1 of 3 prompts are longer than the encoder reads and were cut"]
    by_siglip = small(tmp_path, tiny_siglip(tmp_path / "siglip"))
    judged = suite.judge(suite.items(by_siglip), [drawn(png(n)) for n in range(3)], config=by_siglip)
    assert suite.figures(judged).keys() == {"clip-score/siglip_score_percent"}
    assert suite.rules(by_siglip)["encoder"] != suite.rules(given)["encoder"]


def test_prompts_are_read_from_the_files_that_people_have(tmp_path: Path, clip: Path) -> None:
    files = {
        "p.jsonl": '{"item_id": "x", "prompt": "a cat"}\n{"item_id": "x", "prompt": "again"}\n[]\n',
        "p.csv": 'id,caption\nx,"a cat"\ny,\n,"dogs,\nmany"\n',
        "p.tsv": "Prompt\tNote\na cat\tn\n",
    }
    found = {}
    for name, content in files.items():
        given = small(tmp_path, clip, data__prompts=written(tmp_path / name, content))
        found[name] = [i.prompt[0] for i in suite.items(given)], suite.rules(given)["refused"]["count"]
    assert found == {
        "p.jsonl": (["a cat"], 2),
        "p.csv": (["a cat", "dogs,\nmany"], 1),
        "p.tsv": (["a cat"], 0),
    }
    for name, content in (("p.doc", "x"), ("e.txt", ""), ("e.csv", "a,b\n1,2\n"), ("b.jsonl", "[]\n")):
        with pytest.raises(UsageError, match="data.prompts"):
            suite.items(small(tmp_path, clip, data__prompts=written(tmp_path / name, content)))


def test_real_prompts_are_read_whole(tmp_path: Path, clip: Path) -> None:
    for name, count in (("partiprompts.tsv", 816), ("dpg_bench_prompts.jsonl", 533)):
        given = small(tmp_path, clip, data__prompts=shared(f"prompts/{name}"))
        assert len(suite.items(given)) == count and suite.rules(given)["refused"]["count"] == 0


def test_an_encoder_that_is_missing_is_refused(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(UsageError, match="clip.path is not set"):
        suite.rules(small(tmp_path, clip, clip__path=None))
    with pytest.raises(UsageError, match="clip.path: no CLIP or SigLIP could be loaded"):
        suite.rules(small(tmp_path, clip, clip__path=tmp_path))
