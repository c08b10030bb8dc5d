"""`oneflow corpus` as a user meets it: exit codes, one paragraph of error, and the example of docs and examples."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import RunningStack
from tests.workflows.corpus.inputs import corpus, pairs, png, tar
from workflows import cli
from workflows.config import load, presets
from workflows.corpus.config import CorpusConfig
from workflows.corpus.sources import Draft
from workflows.corpus.units import list_units, opened

REPOSITORY = Path(__file__).resolve().parents[3]


def oneflow(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = 0
    try:
        cli.main(["corpus", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config of captions at <tmp>/raw, which are not there yet."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(corpus(tmp_path / "root").model_dump(mode="json")))
    return path


def test_the_presets_are_valid() -> None:
    assert {"shapes", "emoji"} <= set(presets("corpus"))
    for name in presets("corpus"):
        config: CorpusConfig = load("corpus", name)
        assert config.name == name


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("encode.image_siez=64", 'did you mean "image_size"'),
        ("sources.0.licens=MIT", 'did you mean "licence"'),
        ("sources.0.format=tarball", "sources.0.format"),
        ("sources.0.share=0", "sources.0.share"),
        ("sources.0.columns={picture: x}", "unknown column 'picture'"),
        ("sources.1.name=captions", "two sources are named 'captions'"),
        ("name=../up", "name"),
        ("shard.target_bytes=0", "shard.target_bytes"),
    ],
)
def test_a_wrong_config_is_refused(capsys: pytest.CaptureFixture[str], override: str, told: str) -> None:
    code, _, error = oneflow(capsys, "build", "shapes", "--set", override)
    assert code == 2 and told in error and error.count("\n") == 1


def test_an_empty_source_is_told(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    code, _, error = oneflow(capsys, "build", str(file))
    assert code == 1
    assert "source captions: there is no webdataset input at" in error and error.count("\n") == 1


def test_a_stage_before_its_time_is_told(
    capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path
) -> None:
    tar(tmp_path / "root" / "raw" / "a.tar", pairs(0, 1))
    for stage in ("encode", "shard"):
        code, _, error = oneflow(capsys, "build", str(file), "--stage", stage)
        assert code == 1 and "run oneflow corpus build with --stage ingest" in error


def test_no_corpus_to_look_at(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in ("verify", "inspect"):
        code, _, error = oneflow(capsys, command, str(tmp_path))
        assert code == 1 and "neither manifest.json nor latest is there" in error
    (tmp_path / "manifest.json").write_text("{}")
    code, _, error = oneflow(capsys, "verify", str(tmp_path))
    assert code == 3 and "required property" in error


def test_a_bucket_that_does_not_exist(
    capsys: pytest.CaptureFixture[str], stack: RunningStack, file: Path, tmp_path: Path
) -> None:
    code, _, error = oneflow(capsys, "build", "emoji", "--set", "root=s3://no-such-bucket/x")
    assert code == 1 and "the bucket does not exist" in error
    tar(tmp_path / "raw" / "a.tar", pairs(0, 1))
    code, _, error = oneflow(
        capsys,
        *("build", str(file), "--set", f"sources.0.urls=['{tmp_path}/raw/*.tar']"),
        *("--set", "root=s3://no-such-bucket/x"),
    )
    assert code == 1 and "the bucket does not exist" in error
    code, _, error = oneflow(capsys, "verify", "s3://no-such-bucket/x")
    assert code == 1 and "no-such-bucket" in error


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from s3fs import S3FileSystem

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("no_keys")
def test_no_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = oneflow(capsys, "build", "emoji", "--set", "root=s3://oneflow/x")
    assert code == 1 and "no credentials for S3 were found" in error and "AWS_ACCESS_KEY_ID" in error


def emoji_package(path: Path) -> Path:
    """What npm gives, in small."""
    beetle = {
        "name": "BEETLE",
        "short_name": "beetle",
        "short_names": ["beetle", "lady_bug"],
        "category": "Animals",
    }
    hand = {"name": "RAISED HAND", "short_name": "hand", "short_names": ["hand"], "category": "People"}
    tone = {"1F3FD": {"image": "270b-1f3fd.png", "has_img_google": True}}
    rows = [
        beetle | {"image": "1fab2.png", "has_img_google": True, "sort_order": 2},
        hand | {"image": "270b.png", "has_img_google": True, "sort_order": 1, "skin_variations": tone},
        beetle | {"image": "none.png", "has_img_google": False, "sort_order": 3},
    ]
    pictures = [("1fab2.png", png(1)), ("270b.png", png(2)), ("270b-1f3fd.png", png(3))]
    members = [("package/emoji.json", json.dumps(rows).encode())]
    members += [(f"package/img/google/64/{name}", data) for name, data in pictures]
    return tar(path, members)


def test_the_emoji_example_gives_what_the_preset_reads(tmp_path: Path) -> None:
    package = emoji_package(tmp_path / "emoji.tgz")
    script = REPOSITORY / "examples" / "emoji" / "make_webdataset.py"
    command = [sys.executable, str(script), str(package), str(tmp_path / "raw" / "emoji"), "--skin-tones"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("3 pictures in 1 tars")
    config: CorpusConfig = load("corpus", "emoji", [f"root={tmp_path}"])
    (path,) = (tmp_path / "raw" / "emoji").glob("*.tar")
    (unit,) = list_units(config)
    with opened(config, unit) as rows:
        drafts = [row for row in rows if isinstance(row, Draft)]
    assert [draft.segments[1][0] for draft in drafts] == [
        "raised hand",
        "raised hand: medium skin tone",
        "beetle",
    ]
    first = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        stream = archive.extractfile("1fab2.json")
        assert stream is not None and json.load(stream)["tags"] == ["beetle", "lady bug"]
    subprocess.run(command, capture_output=True, check=True)
    assert path.read_bytes() == first
    missing = subprocess.run([*command[:2], "none.tgz", "x"], capture_output=True, text=True)
    assert missing.returncode == 1 and "npm pack" in missing.stderr
