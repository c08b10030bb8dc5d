"""An HTTP proxy before an S3 server that does to a share of the requests what networks and stores do.

It passes the client's Host on, so that signatures hold. It counts what it did. One seed makes the same choices for
the same order of requests.
"""

import asyncio
import random
import socket
import struct
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

LOOPBACK = "127.0.0.1"
FAULTS = ("latency", "slow_down", "reset", "lost_reply", "truncated", "stale_list")
LATENCY_S = 1.0
STALE_S = 5.0
"""A stale listing shows nothing that was written in the last so many seconds."""
_DROPPED = ("transfer-encoding", "content-encoding", "connection", "keep-alive")
_XML = "{http://s3.amazonaws.com/doc/2006-03-01/}"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class FaultProxy:
    """Passes what comes to `url` on to `target`; `share` of the requests meets a fault, each kind as often.

    `latency`: a wait of up to a second. `slow_down`: 503, not passed on. `reset`: the connection is reset, not
    passed on. `lost_reply`: passed on, and then reset. `truncated`: the connection ends in the middle of the body.
    `stale_list`: a listing without what was written just now. A fault that does not fit a request is a reset.
    """

    def __init__(self, target: str, share: float = 0.05, seed: int = 0) -> None:
        self._target, self.share = target.rstrip("/"), share
        self._random = random.Random(seed)
        self.requests = 0
        self.faults: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self.url = ""

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._client = ClientSession(
            auto_decompress=False, timeout=ClientTimeout(total=300), connector=TCPConnector(force_close=True)
        )
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, 0)
        await site.start()
        self.url = f"http://{LOOPBACK}:{self._runner.addresses[0][1]}"

    async def _end(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    def _fault(self, request: web.Request) -> str | None:
        self.requests += 1
        if self._random.random() >= self.share:
            return None
        fault = self._random.choice(FAULTS)
        lists = request.method == "GET" and "list-type" in request.query
        fits = {"truncated": request.method == "GET", "stale_list": lists}
        fault = fault if fits.get(fault, True) else "reset"
        self.faults[fault] += 1
        return fault

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault(request)
        body = await request.read()
        if fault == "slow_down":
            return web.Response(status=503, body=SLOW_DOWN, content_type="application/xml")
        if fault == "reset":
            return _reset(request)
        if fault == "latency":
            await asyncio.sleep(self._random.uniform(0, LATENCY_S))
        try:
            status, headers, data = await self._pass_on(request, body)
        except OSError:
            # The server is away: so is the proxy.
            return _reset(request)
        if fault == "lost_reply":
            return _reset(request)
        if fault == "stale_list" and status == 200:
            data = _stale(data)
        return await _answer(request, status, headers, data, cut=fault == "truncated")

    async def _pass_on(self, request: web.Request, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        from yarl import URL

        url = URL(self._target + request.raw_path, encoded=True)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("connection", "expect")}
        async with self._client.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as answer:
            return answer.status, answer.headers, await answer.read()


async def _answer(
    request: web.Request, status: int, headers: Mapping[str, str], data: bytes, cut: bool
) -> web.StreamResponse:
    response = web.StreamResponse(status=status)
    for name, value in headers.items():
        if name.lower() not in (*_DROPPED, "content-length"):
            response.headers.add(name, value)
    response.content_length = int(headers.get("Content-Length", 0)) if request.method == "HEAD" else len(data)
    await response.prepare(request)
    if request.method != "HEAD":
        await response.write(data[: len(data) // 2] if cut else data)
    if cut and request.transport is not None:
        request.transport.close()
        return response
    await response.write_eof()
    return response


def _reset(request: web.Request) -> web.StreamResponse:
    """The peer sees a connection that is reset, not one that is closed."""
    if request.transport is not None:
        plain = request.transport.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


def _stale(data: bytes) -> bytes:
    """A listing without the objects that were written in the last seconds."""
    ElementTree.register_namespace("", _XML.strip("{}"))
    tree = ElementTree.fromstring(data)
    for found in tree.findall(f"{_XML}Contents"):
        written = datetime.fromisoformat(found.findtext(f"{_XML}LastModified", ""))
        if time.time() - written.timestamp() < STALE_S:
            tree.remove(found)
    return ElementTree.tostring(tree, xml_declaration=True, encoding="UTF-8")
