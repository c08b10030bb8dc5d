"""Where a model comes from: every kind of address, and the errors of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from oneflow_core import model_source
from oneflow_core.model_source import ModelSourceError, local_directory, register_resolver

FILES = {"model_index.json": b"{}", "model/config.json": b"1", "tokenizer/a/b.json": b"22"}


@pytest.fixture
def bucket() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for name, data in FILES.items():
        memory.pipe(f"/models/one/{name}", data)
    yield "memory://models/one"
    memory.rm("/models", recursive=True)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_url_is_fetched_whole_and_the_copy_goes_away(bucket: str, slash: str) -> None:
    with local_directory(bucket + slash) as (directory, facts):
        assert contents(directory) == FILES
        assert facts["name"] == bucket + slash
    assert not directory.exists()


def test_a_directory_is_used_where_it_is(tmp_path: Path) -> None:
    with local_directory(tmp_path) as (directory, facts):
        assert directory == tmp_path
        assert facts == {"name": str(tmp_path)}
    assert tmp_path.is_dir()


def test_a_registered_scheme_says_what_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "_resolvers", {})

    def resolve(url: str, into: Path) -> dict[str, str]:
        (into / "asked").write_text(url)
        return {"name": "shapes", "version": "7"}

    register_resolver("registry", resolve)
    with local_directory("registry:/shapes@best") as (directory, facts):
        assert (directory / "asked").read_text() == "registry:/shapes@best"
        assert facts == {"name": "shapes", "version": "7"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no/such/directory", "no such directory"),
        ("", "no such directory"),
        ("memory://models/nothing", "there is nothing there"),
        ("gopher://models/one", "check the URL"),
        ("s3://no-such-bucket-of-ours/x", "check the URL, the credentials and the endpoint"),
    ],
)
def test_errors_name_the_model_and_the_mend(source: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ModelSourceError) as caught, local_directory(source):
        pass
    if source:
        assert source in str(caught.value)
    assert says in str(caught.value)
