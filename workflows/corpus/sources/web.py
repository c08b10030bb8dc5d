"""Images that rows name by URL: fetched within bounds, and kept, as they may change or vanish."""

import asyncio
import hashlib
import random
import time
from typing import Any

from workflows.corpus.source_config import FetchConfig
from workflows.corpus.sources.kept import Kept
from workflows.corpus.sources.protocol import Picture
from workflows.storage import open_fs
from workflows.urls import without_secrets

FAILED = "fetch failed"
LASTING = (400, 401, 403, 404, 405, 410, 451)
"""Answers that another try does not change."""
PIECE = 1 << 16


class Web:
    """Fetches single images; a failure is a picture without bytes, for a reason, never an error."""

    def __init__(self, config: FetchConfig, limit: int, kept: Kept | None = None) -> None:
        self._config, self._limit, self._kept = config, limit, kept
        self.threads = config.threads

    def picture(self, url: str) -> Picture:
        """The image at a URL of a row: as it was when it was first read."""
        shown = without_secrets(url)
        if url.partition("://")[0].lower() not in self._config.schemes:
            return Picture(shown, None, "url scheme not allowed")
        if self._kept is None:
            return self.fetched(url)
        data, reason = self._kept.first(
            hashlib.sha256(url.encode("utf-8", "replace")).digest(), lambda: self.tried(url)
        )
        return Picture(shown, data, reason)

    def fetched(self, url: str) -> Picture:
        """The image at `url` as it is now."""
        data, reason = self.tried(url)
        return Picture(without_secrets(url), data, reason)

    def tried(self, url: str, gone: str = FAILED) -> tuple[bytes | None, str]:
        """Bytes, or None and the reason; `gone` where the server says that there is nothing."""
        for attempt in range(self._config.retries + 1):
            try:
                return self._once(url)
            except FileNotFoundError:
                return None, gone
            except (PermissionError, ValueError, ImportError):
                return None, FAILED
            except Exception as error:  # noqa: BLE001 servers and clients fail as they like; it is counted by row
                status = getattr(error, "status", None)
                if status in LASTING:
                    return None, gone if status in (404, 410) else FAILED
            if attempt < self._config.retries:
                time.sleep(0.2 * 2**attempt * (0.5 + random.random() / 2))
        return None, FAILED

    def _once(self, url: str) -> tuple[bytes | None, str]:
        filesystem, path = open_fs(url)
        if "http" in filesystem.protocol:
            from fsspec.asyn import sync

            read: Any = sync(filesystem.loop, self._read, filesystem, path)
        else:
            # Its client has time-outs of its own.
            read = filesystem.cat_file(path, start=0, end=self._limit + 1)
        return (None, "image too large") if len(read) > self._limit else (read, "")

    async def _read(self, filesystem: Any, url: str) -> bytes:
        session = await filesystem.set_session()
        pieces, size = [], 0
        async with (
            asyncio.timeout(self._config.timeout_seconds),
            session.get(filesystem.encode_url(url)) as reply,
        ):
            reply.raise_for_status()
            async for piece in reply.content.iter_chunked(PIECE):
                pieces.append(piece)
                size += len(piece)
                if size > self._limit:
                    break
        return b"".join(pieces)
