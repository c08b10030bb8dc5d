"""Whether every link of a lineage still holds: what it names is there, and digests agree."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from oneflow_core.data.manifest import Input, Manifest, ManifestError
from workflows.corpus.listing import etag_of, is_http
from workflows.errors import OneFlowError
from workflows.lineage.chain import ModelLink
from workflows.lineage.corpus import CorpusLink
from workflows.storage import explained, join, open_fs, sha256_of
from workflows.training.identity import EXPORTED, PARENTS, WEIGHTS

if TYPE_CHECKING:
    from mlflow import MlflowClient

AT_ONCE = 16
NAMED = 3
"""Files that a finding names."""
WEIGHTS_DIRECTORY = "model"
BLOCK = 1 << 22
BROKEN = ("gone", "changed")
"""States of a source's file that break the lineage."""


@dataclass(frozen=True, slots=True)
class Check:
    """One link: what it is, whether it holds, and what was found."""

    link: str
    ok: bool
    found: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def verify(client: "MlflowClient", model: ModelLink) -> Iterator[Check]:
    """A check for each link of `model` and of all behind it. The weights are downloaded, one model at a time."""
    if model.gone:
        yield Check(model.uri, False, f"gone: {model.gone}")
        return
    yield from _weights(client, model)
    if model.run:
        yield from _run(client, model)
    for corpus in model.corpora:
        yield from _corpus(model, corpus)
    if model.parent:
        yield _parent(model, model.parent)
        yield from verify(client, model.parent)


def checked(client: "MlflowClient", model: ModelLink, say: Callable[[str], None]) -> Iterator[Check]:
    """`verify`, told line by line as it goes."""
    say("")
    for check in verify(client, model):
        say(f"{'holds ' if check.ok else 'BROKEN'}  {check.link}: {check.found}")
        yield check


def _weights(client: "MlflowClient", model: ModelLink) -> Iterator[Check]:
    """The bytes of model.safetensors against the version's tag, or the directory's index."""
    link, wanted = f"weights of {model.uri}", model.tags.get(EXPORTED, "")
    if not wanted:
        yield Check(link, True, "registered before their digest was kept; not compared")
        return
    try:
        found = _digest_of_weights(client, model)
    except (OSError, OneFlowError) as error:
        yield Check(link, False, " ".join(str(error).split())[:300])
        return
    yield Check(
        link, found == wanted, f"sha256 {found[:12]}" + ("" if found == wanted else f", not {wanted[:12]}")
    )


def _digest_of_weights(client: "MlflowClient", model: ModelLink) -> str:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    if not model.name:
        return _digest(join(model.uri, WEIGHTS_DIRECTORY))
    with tempfile.TemporaryDirectory(prefix="oneflow-lineage-") as directory:
        uri = f"{model.uri}/{WEIGHTS_DIRECTORY}"
        try:
            return _digest(download_artifacts(uri, dst_path=directory, tracking_uri=client.tracking_uri))
        except MlflowException as error:
            raise OneFlowError(model.uri, str(error), "register it anew") from error


def _digest(directory: str) -> str:
    """SHA-256 of the weights in `directory`: of all files in the order of their names, where there are several."""
    found = hashlib.sha256()
    with explained(directory):
        filesystem, path = open_fs(directory)
        names = sorted(name for name in filesystem.ls(path, detail=False) if name.endswith(".safetensors"))
        for name in names:
            with filesystem.open(name) as file:
                while block := file.read(BLOCK):
                    found.update(block)
    if not names:
        raise OneFlowError(directory, "there are no weights", "register the model anew")
    return found.hexdigest()


def _run(client: "MlflowClient", model: ModelLink) -> Iterator[Check]:
    """The run is there, and its config is the one whose digest the version names."""
    from workflows.runs.record import config_artifact

    run, wanted = model.run, model.tags.get("oneflow.config_digest", "")
    if run is None or run.gone:
        yield Check(f"run {run.id if run else ''}", False, f"gone: {run.gone if run else ''}")
        return
    yield Check(f"run {run.name}", True, f"{run.status}, {run.id}")
    tree = config_artifact(client, run.id, wanted) or config_artifact(client, run.id)
    if tree is None:
        yield Check(f"config of {run.name}", False, "its artifact config.json cannot be read")
        return
    found = hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    told = f"sha256 {found[:12]}" + ("" if found == wanted else f", not {wanted[:12]}")
    yield Check(f"config of {run.name}", found == wanted, told)


def _corpus(model: ModelLink, corpus: CorpusLink) -> Iterator[Check]:
    ref, manifest = corpus.ref, corpus.manifest
    link = f"corpus {ref.name}@{ref.version}"
    if manifest is None:
        yield Check(link, False, f"gone: {corpus.gone}")
        return
    digest = str(manifest.to_json()["digest"])
    agrees = not ref.manifest_sha256 or digest == ref.manifest_sha256
    told = f"manifest {digest[:12]}" + (
        "" if agrees else f", not {ref.manifest_sha256[:12]}: it was built again"
    )
    yield Check(link, agrees, told)
    yield Check(f"{link}: shards", *_shards(manifest))
    for what, made, used in (
        ("codec", manifest.codec, model.tags.get("oneflow.codec")),
        ("encoder", manifest.encoder, model.tags.get("oneflow.encoder")),
    ):
        if made and used:
            yield Check(
                f"{link}: {what}", made == used, made if made == used else f"{made}, the model has {used}"
            )
    yield from _sources(link, corpus)


def _shards(manifest: Manifest) -> tuple[bool, str]:
    """Told by a listing: every shard is there with its size."""
    try:
        with explained(manifest.base):
            filesystem, path = open_fs(manifest.base)
            listed = filesystem.ls(path, detail=True)
        there = {i["name"].rpartition("/")[2]: i["size"] for i in listed}
        wrong = [s.name for s in manifest.shards if there.get(s.name) != s.bytes]
    except (OneFlowError, ManifestError) as error:
        return False, str(error)[:300]
    count = len(manifest.shards)
    return not wrong, f"{count - len(wrong):,} of {count:,} are there" + _named(wrong)


def _sources(link: str, corpus: CorpusLink) -> Iterator[Check]:
    """The files of each source, in one pass over all of them."""
    counts: dict[str, Counter[str]] = {source.name: Counter() for source in corpus.sources}
    wrong: dict[str, list[str]] = {name: [] for name in counts}
    for entry, state in _states(list(corpus.inputs())):
        counts[entry.source][state] += 1
        if state in BROKEN:
            wrong[entry.source].append(entry.url)
    for name, found in counts.items():
        told = ", ".join(f"{count:,} {state}" for state, count in found.items())
        yield Check(f"{link}: files of {name}", not wrong[name], told + _named(wrong[name]))


def _states(inputs: list[Input]) -> list[tuple[Input, str]]:
    """What became of each file, by listings: the same, or one of BROKEN; of a unit of several files, that it is there.

    Where a listing says that a file was written anew, its bytes are digested.
    """
    there: dict[str, Any] = {}
    parents = {entry.url.rpartition("/")[0] for entry in inputs}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for listed in pool.map(_listed, sorted(parents)):
            there |= listed
        shared = Counter(entry.url for entry in inputs)
        return list(zip(inputs, pool.map(lambda entry: _state(entry, there, shared), inputs), strict=True))


def _listed(parent: str) -> dict[str, Any]:
    """URL of each file in a directory; nothing where it is not there, or where nothing is listed."""
    try:
        with explained(parent):
            filesystem, path = open_fs(parent)
            found = [] if is_http(filesystem) else filesystem.ls(path, detail=True)
    except OneFlowError:
        return {}
    return {f"{parent}/{info['name'].rstrip('/').rpartition('/')[2]}": info for info in found}


def _state(entry: Input, there: dict[str, Any], shared: Counter[str]) -> str:
    info = there.get(entry.url) or _asked(entry.url)
    if info is None:
        return BROKEN[0]
    if etag_of(info) == entry.etag and info.get("size") == entry.size:
        return "the same"
    if shared[entry.url] > 1 or info.get("size") != entry.size:
        return "there, not compared"
    return "the same" if sha256_of(entry.url) == entry.sha256 else BROKEN[1]


def _asked(url: str) -> dict[str, Any] | None:
    try:
        with explained(url):
            filesystem, path = open_fs(url)
            found: dict[str, Any] = filesystem.info(path)
            return found
    except OneFlowError:
        return None


def _parent(model: ModelLink, parent: ModelLink) -> Check:
    """The weights that the run started from are those that the parent has now."""
    wanted = model.tags.get(PARENTS[1], "")
    known = {parent.tags.get(EXPORTED), parent.tags.get(WEIGHTS)}
    link = f"{model.uri} starts from {parent.uri}"
    if not wanted or parent.gone:
        return Check(
            link, not parent.gone, parent.gone or "its weights were not kept by digest; not compared"
        )
    return Check(
        link, wanted in known, f"weights {wanted[:12]}" + ("" if wanted in known else ", it has others now")
    )


def _named(names: list[str]) -> str:
    return f"; wrong: {', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}" if names else ""
