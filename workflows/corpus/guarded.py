"""Rows of a reader that may meet what it was not made for: then what came before, and a row that says so."""

import errno
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator

import ijson
import pyarrow as pa

from workflows.corpus.sources import Draft, Refused
from workflows.corpus.sources.packed import Broken
from workflows.corpus.sources.protocol import head
from workflows.errors import OneFlowError

MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS}
)
"""Errors of this machine, not of the file that is read."""
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    ijson.JSONError,
    pa.ArrowException,
)
"""What parsers raise where bytes are damaged; anything else is a reader that met what it was not made for."""


def guarded(name: str, rows: Iterable[Draft | Refused]) -> Iterator[Draft | Refused]:
    """`rows` of the unit `name`; a reader's exception becomes their last, so that other files go on.

    Raises:
        OneFlowError: storage that fails, or a config that does not fit: what trying again or a user mends.
        OSError: the disk is full, and the like.
    """
    try:
        yield from rows
    except OneFlowError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise
        yield Refused(name, _reason(error), head(f"{type(error).__name__}: {error}"))


def _reason(error: Exception) -> str:
    if isinstance(error, Broken):
        return str(error)
    return "file broken" if isinstance(error, DAMAGE) else f"reader failed: {type(error).__name__}"
