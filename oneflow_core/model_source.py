"""Where a model comes from: a directory, the embedded one, any fsspec URL, or a scheme that somebody registered."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

EMBEDDED = "embedded"
ASSETS = Path(__file__).resolve().parent / "assets" / "models" / "shapes"
RESOLVERS = "oneflow.resolvers"
"""Entry point group: the name is a URL scheme, the object a `Resolver`."""

Facts = Mapping[str, str]
"""What is known of a model's identity: `name`, `version`, `run_id`."""

Resolver = Callable[[str, Path], Facts]
"""Puts the model directory that a URL names into an empty directory and says what it is."""

_resolvers: dict[str, Resolver] = {}


class ModelSourceError(ValueError):
    """A model that is not where it was said to be; the message says what would do."""


def register_resolver(scheme: str, resolver: Resolver) -> None:
    """From now on `scheme:/...` is fetched by `resolver`; an installed package may name one as an entry point."""
    _resolvers[scheme] = resolver


@contextmanager
def local_directory(source: str | Path) -> Iterator[tuple[Path, Facts]]:
    """The model directory as a local path for as long as the context is open, and what is known of it.

    Raises:
        ModelSourceError: nothing there, a scheme that nobody knows, or storage that does not answer.
    """
    text = str(source)
    if text == EMBEDDED:
        yield _embedded(), {"name": "embedded"}
    elif ":/" not in text or Path(text).is_dir():
        yield _directory(text), {"name": text}
    else:
        with tempfile.TemporaryDirectory(prefix="oneflow-model-") as temporary:
            fetched = Path(temporary)
            facts = _fetch(text, fetched)
            yield fetched, {"name": text, **facts}


def _embedded() -> Path:
    if not (ASSETS / "model_index.json").is_file():
        raise ModelSourceError(
            f"the embedded model is not at {ASSETS}; reinstall oneflow, or name a model: a directory, a URL, "
            "or models:/NAME@ALIAS"
        )
    return ASSETS


def _directory(text: str) -> Path:
    if not text or not Path(text).is_dir():
        raise ModelSourceError(
            f"model {text!r}: no such directory; name a directory, an fsspec URL (s3://...), "
            'models:/NAME@ALIAS, or "embedded"'
        )
    return Path(text)


def _fetch(url: str, into: Path) -> Facts:
    scheme = url.split(":", 1)[0]
    resolver = _resolver(scheme)
    if resolver is not None:
        return resolver(url, into)
    _download(url, into)
    return {}


def _resolver(scheme: str) -> Resolver | None:
    if scheme not in _resolvers:
        for entry in entry_points(group=RESOLVERS, name=scheme):
            _resolvers[scheme] = entry.load()
    return _resolvers.get(scheme)


def _download(url: str, into: Path) -> None:
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(url)
        names = filesystem.find(path)
        for name in names:
            target = into / name[len(path) :].lstrip("/")
            if not target.resolve().is_relative_to(into.resolve()):
                raise ModelSourceError(f"model {url}: object {name!r} would leave the model's directory")
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(name, str(target))
    except ModelSourceError:
        raise
    except Exception as error:  # every storage has errors of its own, with no common parent
        raise ModelSourceError(
            f"model {url}: {type(error).__name__}: {error}; check the URL, the credentials and the endpoint"
        ) from error
    if not names:
        raise ModelSourceError(f"model {url}: there is nothing there; check the URL")
