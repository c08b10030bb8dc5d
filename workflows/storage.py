"""Objects on any fsspec URL: whole or not there, with errors that say what to do.

An object of `s3://` appears in one PUT, a local file by rename; `if_absent` makes either conditional, so that of
many writers one wins. Read what others wrote only after its manifest is there.
"""

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from workflows.errors import OneFlowError
from workflows.storage_errors import explain, is_exists
from workflows.store_retries import RETRIES, make_patient
from workflows.urls import without_secrets

UNFINISHED = re.compile(r"^\..+\.[0-9a-f]{32}$")


def open_fs(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of `url` and the path in it; OneFlowError when its protocol or its credentials are missing.

    Requests to S3 that fail for the moment are tried again (`store_retries`).
    """
    with explained(url):
        make_patient()
        filesystem, path = url_to_fs(url)
        return filesystem, path.removesuffix("/") if len(path) > 1 else path


def join(url: str, *parts: str) -> str:
    """`url` and `parts` with single slashes between."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def put_atomic(url: str, data: bytes | memoryview, *, if_absent: bool = False) -> bool:
    """Write `data` as the whole object `url`; readers see the old object, none, or all of the new one.

    Returns True when this call wrote it. With `if_absent` an object that is there stays, and False is returned;
    of concurrent calls with different bytes at most one gets True. A write that was tried again and then refused,
    because the first try had come through and only its answer was lost, is told from that of another writer by
    reading back. Missing local directories are made.
    """
    filesystem, path = open_fs(url)
    before = RETRIES.counts()
    try:
        if isinstance(filesystem, LocalFileSystem):
            _put_local(Path(path), data, if_absent)
        else:
            filesystem.pipe_file(path, bytes(data), mode="create" if if_absent else "overwrite")
    except Exception as error:
        if RETRIES.counts() != before and _holds(filesystem, path, data):
            return True
        if if_absent and is_exists(error):
            return False
        raise explain(url, error) from error
    return True


def read_bytes(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The object's bytes, or those of [start, end); OneFlowError when it is not there."""
    filesystem, path = open_fs(url)
    with explained(url):
        data: bytes = filesystem.cat_file(path, start=start, end=end)
        return data


def exists(url: str) -> bool:
    """Whether an object is at `url`, or below it; a bucket that does not exist is an answer (False)."""
    filesystem, path = open_fs(url)
    with explained(url):
        try:
            if filesystem.info(path)["type"] == "file":
                return True
        except FileNotFoundError:
            return False
        # Some stores keep a prefix when the last object below it is gone.
        return any(name for _, _, files in filesystem.walk(path) for name in files)


def size(url: str) -> int:
    """Bytes of the object at `url`."""
    filesystem, path = open_fs(url)
    with explained(url):
        return int(filesystem.size(path) or 0)


def list_urls(pattern: str) -> list[str]:
    """URLs of the objects that match, sorted; `{a,b}`, `{00..09}`, `*`, `?`, `**` are understood.

    A pattern without `*` or `?` names one object, or all objects below a directory. Nothing there is an empty list,
    a bucket that does not exist a OneFlowError.
    """
    return sorted({url for one in _unbraced(pattern) for url in _match(one)})


def list_unfinished(url: str) -> list[str]:
    """Files right below `url` that writers are at in `put_atomic`, or were when they were killed; local ones alone."""
    filesystem, path = open_fs(url)
    if not isinstance(filesystem, LocalFileSystem):
        return []
    return sorted(str(file) for file in Path(path).glob(".*") if UNFINISHED.search(file.name))


def list_directories(url: str) -> list[str]:
    """Names of the directories right below `url`, sorted; nothing there is an empty list."""
    filesystem, path = open_fs(url)
    with explained(url):
        try:
            entries = filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return []
    return sorted(e["name"].rstrip("/").rpartition("/")[2] for e in entries if e["type"] == "directory")


def delete(url: str, *, recursive: bool = False) -> None:
    """Remove the object, or with `recursive` all below it; nothing there is no error."""
    filesystem, path = open_fs(url)
    with explained(url):
        if filesystem.exists(path):
            filesystem.rm(path, recursive=recursive)


def read_json(url: str) -> Any:
    """The JSON value at `url`; OneFlowError when it is not there or no JSON."""
    data = read_bytes(url)
    try:
        return json.loads(data)
    except ValueError as error:
        raise OneFlowError(url, f"not JSON: {error}", "write the object anew") from None


def write_json(url: str, value: Any, *, if_absent: bool = False) -> bool:
    """`value` as JSON, keys sorted, so that equal values give equal bytes; returns as `put_atomic`."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    return put_atomic(url, text.encode(), if_absent=if_absent)


def sha256(data: bytes | memoryview) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(url: str, block: int = 1 << 22) -> str:
    """SHA-256 in hex of the object at `url`, read `block` bytes at a time."""
    filesystem, path = open_fs(url)
    digest = hashlib.sha256()
    with explained(url), filesystem.open(path, "rb", block_size=block) as stream:
        while chunk := stream.read(block):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what storage raises inside into a OneFlowError that names `url`, the cause and the mend."""
    try:
        yield
    except Exception as error:
        # Ray prints causes; one that shows a secret is left out.
        raise explain(url, error) from (error if without_secrets(str(error)) == str(error) else None)


def _holds(filesystem: AbstractFileSystem, path: str, data: bytes | memoryview) -> bool:
    try:
        return bool(filesystem.size(path) == len(data) and filesystem.cat_file(path) == data)
    except Exception:
        # The error of the write is the one to be told.
        return False


def _unbraced(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    from braceexpand import braceexpand

    return list(braceexpand(pattern))


def _match(pattern: str) -> list[str]:
    filesystem, path = open_fs(pattern)
    with explained(pattern):
        if not any(wild in path for wild in "*?"):
            entries = filesystem.find(path, detail=True)
        else:
            entries = filesystem.glob(path, detail=True)
        found = [name for name, info in entries.items() if info["type"] == "file"]
        if not found and pattern.startswith("s3://"):
            filesystem.ls(path.split("/")[0])
        return [_with_protocol(pattern, filesystem, name) for name in found]


def _with_protocol(pattern: str, filesystem: AbstractFileSystem, path: str) -> str:
    return str(filesystem.unstrip_protocol(path)) if "://" in pattern else path


def _put_local(path: Path, data: bytes | memoryview, if_absent: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path.parent)) from None
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if if_absent:
            os.link(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
