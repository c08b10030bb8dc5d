"""A web server as sources meet them: with ranges or without, with passwords, failures and slow answers."""

import base64
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Web:
    """Serves the files below `folder`. Nothing is listed."""

    folder: Path
    url: str = ""
    ranges: bool = True
    password: str | None = None
    fail: Counter[str] = field(default_factory=Counter)
    """Path -> how many of its next answers are cut short in the middle."""
    slow: dict[str, float] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path with query, range."""
    sent: Counter[str] = field(default_factory=Counter)
    """Path -> bytes of bodies."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    folder = tmp_path / "www"
    folder.mkdir()
    served = Web(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            served.asked.append((self.command, self.path, self.headers.get("Range", "")))
            time.sleep(served.slow.get(path, 0) if body else 0)
            file = folder / path.lstrip("/")
            wanted = "Basic " + base64.b64encode(f"user:{served.password}".encode()).decode()
            if served.password is not None and self.headers.get("Authorization") != wanted:
                self.status(401)
            elif not file.is_file():
                self.status(404)
            else:
                self.content(path, file.read_bytes(), body)

        def status(self, code: int) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def content(self, path: str, data: bytes, body: bool) -> None:
            asked = self.headers.get("Range", "")
            if served.ranges and asked.startswith("bytes="):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last or len(data)), len(data) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
                data = data[start : end + 1]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hash(data)}"')
            self.end_headers()
            if body and served.fail[path] > 0:
                served.fail[path] -= 1
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif body:
                for start in range(0, len(data), 1 << 16):
                    self.wfile.write(data[start : start + (1 << 16)])
                    served.sent[path] += len(data[start : start + (1 << 16)])

        def handle(self) -> None:
            # Readers that saw enough hang up.
            with contextlib.suppress(ConnectionError):
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
