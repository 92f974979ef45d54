"""The client that talks to providers. Which HTTP library it uses is known only here and in `http_client.py`.

A proxy needs raw header pairs, body bytes in the provider's own encoding, keep-alive, back-pressure and limits, and
nothing else. Nothing is retried: a request that may have reached the provider is never sent twice. No redirect is
followed, no proxy is asked, no name is resolved but by `resolver.py`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import cast

import aiohappyeyeballs
import msgspec

from gateway.errors import ConfigurationError, ObolError
from gateway.failpoints import FailPoints
from gateway.proxy.http_client import HeaderPairs, HttpConnection, Timeouts
from gateway.proxy.masking import mask
from gateway.proxy.resolver import NotSent, Policy, Resolver

IDLE_PER_ORIGIN_MAX = 512
TIME_CHECK_INTERVAL_S = 0.25
NEXT_ADDRESS_AFTER_S = 0.25
"""How long one address may take to answer before the next one is tried beside it (RFC 8305)."""


class Origin(msgspec.Struct, frozen=True):
    """Where to connect, the host to name in `Host`, and who chose it. A connection serves one of these only."""

    scheme: str
    host: str
    port: int
    host_header: str
    policy: Policy = "own"


class Request(msgspec.Struct, kw_only=True):
    """What goes upstream. `content_length` None with a stream of pieces: sent chunked.

    `withheld`: the caller's credential, which must not stand anywhere in the head. `secret`: the installation's own
    key in it, which an error answer must not quote. Both may be empty.
    """

    method: str
    path: str
    headers: HeaderPairs
    body: bytes | AsyncIterator[bytes] = b""
    content_length: int | None = None
    withheld: bytes = b""
    secret: bytes = b""
    sent: bool = False
    """Some of it may have left."""


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
        self,
        *,
        connections_max: int,
        connect_timeout_s: float,
        idle_s: float,
        resolver: Resolver,
        tls: ssl.SSLContext,
        fail: FailPoints | None = None,
    ) -> None:
        self._fail = fail
        self._connections_max = connections_max
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self.resolver = resolver
        self.tls = tls
        self._idle: dict[Origin, deque[HttpConnection]] = {}
        self._open: set[HttpConnection] = set()
        self._opening = 0
        self.reused_total = 0
        self.opened_total = 0

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def send(self, origin: Origin, request: Request, timeouts: Timeouts) -> Response:
        """Send a request and wait for the head of the answer.

        Raise ObolError: NotSent (400, 429) where the call is not made, else 502 or 504.
        """
        chunked = not isinstance(request.body, bytes) and request.content_length is None
        head = _head(origin, request, chunked=chunked)
        if request.withheld and request.withheld in head:
            raise NotSent(
                "invalid_request",
                "the credential also stands in a header or parameter that would go to the provider; send it once",
                param="authorization",
            )
        connection = self._take_idle(origin) or await self._connect(origin)
        response: Response | None = None
        try:
            connection.begin(timeouts)
            request.sent = True
            await connection.send(head, request.body, chunked=chunked)
            if self._fail is not None:
                self._fail.soon("dispatched")
            await connection.head()
            if request.method == "HEAD":
                connection.without_body()
            if request.secret and connection.status >= 300:
                await mask(connection, request.secret)
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
            self._check(loop.time())

    def _check(self, now_s: float) -> None:
        # Not in `run`: its variables would keep the last connection, with all of its call, until the next round.
        for connection in list(self._open):
            connection.check_time(now_s)
        for origin, idle in list(self._idle.items()):
            while idle and idle[0].idle_since < now_s - self._idle_s:
                idle.popleft().abort()
            if not idle:  # merchants choose hosts of their own: none is remembered for ever
                del self._idle[origin]

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
        """A new connection, TLS included. Raise ObolError; then no byte of a request was sent."""
        if len(self._open) + self._opening >= self._connections_max:
            raise NotSent(
                "too_many_requests",
                "all connections to providers are in use",
                retry_after_s=1,
                limit="upstream_connections_max",
            )
        self._opening += 1
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._opened(origin)
        except TimeoutError:
            why = f"{origin.host} did not accept a connection in time"
            raise ObolError("upstream_timeout", why, limit="upstream_connect_timeout_ms") from None
        except ssl.SSLCertVerificationError as error:
            why = f"{origin.host} did not prove who it is: {error.verify_message}"
            raise ObolError("upstream_failed", why) from None
        except (OSError, RuntimeError) as error:  # uvloop knows both
            why = type(error).__name__
            raise ObolError("upstream_failed", f"{origin.host} could not be reached ({why})") from None
        finally:
            self._opening -= 1
        if not connection.usable:  # its end has been told already and would never be noticed
            raise ObolError("upstream_failed", f"{origin.host} closed the connection at once")
        self._open.add(connection)
        self.opened_total += 1
        return connection

    async def _opened(self, origin: Origin) -> HttpConnection:
        """Connected to one of the very addresses that were checked; the certificate must be for the name."""
        infos = await self.resolver.addresses(origin.host, origin.port, origin.policy)
        raw = await aiohappyeyeballs.start_connection(infos, happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secure = origin.scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: HttpConnection(self._open.discard),
            sock=raw,
            ssl=self.tls if secure else None,
            server_hostname=origin.host if secure else None,
        )
        return connection


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """TLS 1.2 or later, certificates verified against the system's authorities and those in `ca_file` (PEM).

    Raise ConfigurationError where the file is not usable.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"OBOL_UPSTREAM_CA_FILE: {ca_file!r} is not usable: {error.strerror}") from None
    return context


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
