"""The client that talks to providers. Which HTTP library it uses is known only here and in `http_client.py`.

A proxy needs raw header pairs, body bytes in the provider's own encoding, keep-alive, back-pressure and limits, and
nothing else. Nothing is retried: a request that may have reached the provider is never sent twice.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import cast

import msgspec

from gateway.errors import ObolError
from gateway.proxy.http_client import HeaderPairs, HttpConnection, Timeouts

IDLE_PER_ORIGIN_MAX = 512
TIME_CHECK_INTERVAL_S = 0.25


class Origin(msgspec.Struct, frozen=True):
    """Where to connect, and the host to name in `Host`."""

    scheme: str
    host: str
    port: int
    host_header: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What goes upstream. `content_length` None with a stream of pieces: sent chunked."""

    method: str
    path: str
    headers: HeaderPairs
    body: bytes | AsyncIterator[bytes] = b""
    content_length: int | None = None


class Response:
    """The head of a provider's answer, and its body as it comes. `close` it, always."""

    __slots__ = ("_connection", "_upstream", "headers", "reason", "status")

    def __init__(self, upstream: Upstream, origin: Origin, connection: HttpConnection) -> None:
        self._upstream: tuple[Upstream, Origin] | None = (upstream, origin)
        self._connection = connection
        self.status = connection.status
        self.reason = connection.reason.decode("latin-1")
        self.headers = connection.headers

    def header(self, name: bytes) -> str:
        """The first value of a header, named in lower case, or ""."""
        for key, value in self.headers:
            if key.lower() == name:
                return value.decode("latin-1")
        return ""

    async def read(self) -> bytes:
        """The next bytes of the body as sent, b"" at its end. Raise ObolError when it is cut short or too slow."""
        return await self._connection.read()

    async def pump(self, sink: Callable[[bytes], bool]) -> None:
        """Hand over what comes as it comes, until `sink` returns False, the end is near or something fails.

        `read` then gives the rest. `sink` must not raise.
        """
        await self._connection.pump(sink)

    @property
    def ended(self) -> bool:
        """Everything has arrived and been read."""
        return self._connection.ended

    def close(self) -> None:
        """Keep the connection if the body was read to its end, else drop it. May be called twice."""
        if self._upstream is not None:
            upstream, origin = self._upstream
            self._upstream = None
            upstream.give_back(origin, self._connection)


class Upstream:
    """All connections to providers, kept alive per origin."""

    def __init__(
        self, *, connections_max: int, connect_timeout_s: float, idle_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self._connections_max = connections_max
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._tls = tls or ssl.create_default_context()
        self._idle: dict[Origin, deque[HttpConnection]] = {}
        self._open: set[HttpConnection] = set()
        self.reused_total = 0
        self.opened_total = 0

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def send(self, origin: Origin, request: Request, timeouts: Timeouts) -> Response:
        """Send a request and wait for the head of the answer. Raise ObolError (502, 503 or 504)."""
        connection = self._take_idle(origin) or await self._connect(origin)
        response: Response | None = None
        try:
            connection.begin(timeouts)
            chunked = not isinstance(request.body, bytes) and request.content_length is None
            await connection.send(_head(origin, request, chunked=chunked), request.body, chunked=chunked)
            await connection.head()
            if request.method == "HEAD":
                connection.without_body()
            response = Response(self, origin, connection)
            return response
        finally:
            if response is None:
                connection.finish()
                connection.abort()

    def give_back(self, origin: Origin, connection: HttpConnection) -> None:
        if not connection.finish():
            return
        idle = self._idle.setdefault(origin, deque())
        idle.append(connection)
        if len(idle) > IDLE_PER_ORIGIN_MAX:
            idle.popleft().abort()

    async def run(self) -> None:
        """For ever: hold every exchange to its limits, and let connections that are no longer used go."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TIME_CHECK_INTERVAL_S)
            now_s = loop.time()
            for connection in list(self._open):
                connection.check_time(now_s)
            for idle in self._idle.values():
                while idle and idle[0].idle_since < now_s - self._idle_s:
                    idle.popleft().abort()

    async def close(self) -> None:
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)

    def _take_idle(self, origin: Origin) -> HttpConnection | None:
        """The connection used last: the others may then grow old and go."""
        idle = self._idle.get(origin)
        if not idle:
            return None
        while idle:
            connection = idle.pop()
            if connection.usable:
                self.reused_total += 1
                return connection
        return None

    async def _connect(self, origin: Origin) -> HttpConnection:
        if len(self._open) >= self._connections_max:
            raise ObolError("too_many_requests", "all connections to providers are in use", retry_after_s=1)
        loop = asyncio.get_running_loop()
        secure = origin.scheme == "https"
        opening = loop.create_connection(
            lambda: HttpConnection(self._open.discard),
            origin.host,
            origin.port,
            ssl=self._tls if secure else None,
            server_hostname=origin.host if secure else None,
        )
        try:
            transport, connection = await asyncio.wait_for(opening, self._connect_timeout_s)
        except TimeoutError:
            raise ObolError("upstream_timeout", f"{origin.host} did not accept a connection in time") from None
        except (OSError, ssl.SSLError) as error:
            why = type(error).__name__
            raise ObolError("upstream_failed", f"{origin.host} could not be reached ({why})") from None
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(connection)
        self.opened_total += 1
        return connection


def _head(origin: Origin, request: Request, *, chunked: bool) -> bytes:
    """The request line and headers. Names and values come from a parsed request: they hold no line break."""
    lines = [f"{request.method} {request.path} HTTP/1.1\r\nHost: {origin.host_header}\r\n".encode("latin-1")]
    lines += [b"%b: %b\r\n" % pair for pair in request.headers]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    elif request.content_length is not None:
        lines.append(b"Content-Length: %d\r\n" % request.content_length)
    elif request.body or request.method in ("POST", "PUT", "PATCH"):
        lines.append(b"Content-Length: %d\r\n" % len(cast(bytes, request.body)))
    lines.append(b"\r\n")
    return b"".join(lines)
