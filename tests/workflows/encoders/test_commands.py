import json
from pathlib import Path

import pytest

from oneflow_core.encoders import LatentCodec
from workflows.cli import main


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_fit_writes_a_codec_that_measure_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "codec"
    fit = ["encoders", "fit", "latent", "--out", str(out), "--steps", "2", "--pictures", "6", "--json"]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(fit)
        assert ended.value.code in (None, 0)
    report = last_json(capsys)
    assert report["id"] == LatentCodec.from_pretrained(out).id
    assert json.loads((out / "report.json").read_text())["id"] == report["id"]
    with pytest.raises(SystemExit):
        main(["encoders", "measure", "latent", str(out), "--pictures", "6", "--json"])
    measured = last_json(capsys)
    assert measured["id"] == report["id"] and measured["shapes"] == report["shapes"]


def test_fit_does_not_replace_what_no_fit_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["encoders", "fit", "latent", "--out", str(tmp_path), "--steps", "1"])
    assert ended.value.code == 2 and "no fit wrote" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_measure_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["encoders", "measure", "latent", str(tmp_path)])
    assert ended.value.code == 2 and "no AutoencoderKL" in capsys.readouterr().err
