"""One HTTP/1.1 connection to a provider: an asyncio protocol over the C parser of httptools."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import cast

import httptools
import msgspec

from gateway.errors import ObolError

HeaderPairs = list[tuple[bytes, bytes]]

BUFFER_HIGH_BYTES = 128 * 1024
"""Body bytes waiting to be read at which the provider's socket is paused."""
BULK_BYTES = 128 * 1024
"""A read so large is of a provider that has more: the next one waits until the loop has been round."""
HEAD_MAX_BYTES = 256 * 1024
WRITE_PIECE_BYTES = 64 * 1024


class Timeouts(msgspec.Struct, frozen=True):
    """Of one exchange, in seconds: silence before the head, silence within the body, and the whole of it."""

    first_byte_s: float
    idle_s: float
    total_s: float


class HttpConnection(asyncio.Protocol):
    """One connection, one exchange at a time: `begin`, `send`, `head`, `read` until b"", `finish`."""

    def __init__(self, closed: Callable[[HttpConnection], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._closed = closed
        self._transport: asyncio.Transport | None = None
        self._writable: asyncio.Future[None] | None = None
        self.idle_since = 0.0
        self._yielding = False
        self._reset()

    def _reset(self) -> None:
        self._parser: httptools.HttpResponseParser | None = None
        self._body: deque[bytes] = deque()
        self._body_bytes = 0
        self._head_bytes = 0
        self._head_done = False
        self._complete = False
        self._keep_alive = False
        self._spoiled = False
        self._paused = False
        self._error: ObolError | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.status = 0
        self.reason = b""
        self.headers: HeaderPairs = []

    # -- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:  # bytes nobody asked for: this connection cannot be trusted with an exchange
            self.abort()
            return
        self._active_at = self._loop.time()
        if len(data) >= BULK_BYTES and not self._yielding:
            self._yield()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._complete:
                self._fail("upstream_failed", "the provider's answer is not HTTP/1.1")
            self._keep_alive = False
        if self._sink is not None and self._body and not self._complete and self._error is None:
            if not self._sink(self._take()):
                self._sink = None
                self._wake()
            return
        self._wake()

    def _yield(self) -> None:
        """Give the others their turn: the loop would read on from a fast provider, up to 32 times in a row."""
        if self._transport is not None:
            self._yielding = True
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._yielding = False
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._parser is not None and not self._complete:
            if self._head_done and self._ends_with_connection():
                self._complete = True
            else:
                self._fail("upstream_failed", "the provider closed the connection before its answer was complete")
        self._wake()
        self.resume_writing()
        self._closed(self)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # -- what the parser calls

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_MAX_BYTES:
            self._fail("upstream_failed", f"the provider's headers exceed {HEAD_MAX_BYTES} bytes")
            self.abort()
        elif not self._head_done:  # trailers are dropped
            self.headers.append((name, value))

    def on_message_begin(self) -> None:
        if self._complete:  # a second answer to one request: whoever sent it, it belongs to nobody
            self._spoiled = True

    def on_headers_complete(self) -> None:
        if self._spoiled:
            return
        self.status = cast(httptools.HttpResponseParser, self._parser).get_status_code()
        if self.status < 200:  # 100 and 103 announce; the answer is still to come
            self.headers, self.reason = [], b""
        else:
            self._head_done = True

    def on_body(self, body: bytes) -> None:
        if self._spoiled:
            return
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > BUFFER_HIGH_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._head_done and not self._spoiled:
            self._complete = True
            self._keep_alive = cast(httptools.HttpResponseParser, self._parser).should_keep_alive()

    # -- what the caller calls

    def begin(self, timeouts: Timeouts) -> None:
        """A new exchange on this connection. `check_time` holds it to its limits."""
        self._reset()
        self._parser = httptools.HttpResponseParser(self)
        self._timeouts = timeouts
        self._began_at = self._active_at = self._loop.time()

    async def send(self, head: bytes, body: bytes | AsyncIterator[bytes], *, chunked: bool) -> None:
        """Write the request. An answer that comes early (413), or a lost connection, ends the writing."""
        if isinstance(body, bytes):
            if len(body) <= WRITE_PIECE_BYTES:
                self._write(head + body)
                return
            self._write(head)
            await self._write_all(body)
            return
        self._write(head)
        async for piece in body:
            if self._complete or self._error is not None:
                return
            await self._write_all(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked and piece else piece)
        if chunked:
            self._write(b"0\r\n\r\n")

    async def head(self) -> None:
        """Wait for the status and the headers. Raise ObolError `upstream_failed` or `upstream_timeout`."""
        while not self._head_done:
            if self._error is not None:
                raise self._error
            await self._wait()

    def without_body(self) -> None:
        """The answer to a HEAD: its headers speak of a body that does not come."""
        self._complete = True
        self._keep_alive = False

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. What arrived before an error is given before it is raised."""
        while not self._body:
            if self._error is not None:
                raise self._error
            if self._complete:
                return b""
            await self._wait()
        return self._take()

    def put_back(self, body: bytes) -> None:
        """What `read` is to give again, before whatever is still to come."""
        if body:
            self._body.appendleft(body)
            self._body_bytes += len(body)

    async def pump(self, sink: Callable[[bytes], bool]) -> None:
        """Hand over what comes as it comes, without a task switch for each piece.

        Returns when `sink` returns False (it wants no more for now), at the end of the body, or on an error: what is
        then still to be had, the last piece or the error, `read` gives. `sink` must not raise.
        """
        self._sink = sink
        try:
            while self._sink is not None and not self._body and not self._complete and self._error is None:
                await self._wait()
        finally:
            self._sink = None

    def _take(self) -> bytes:
        if len(self._body) == 1:
            data = self._body.popleft()
        else:
            data = b"".join(self._body)
            self._body.clear()
        self._body_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._active_at = self._loop.time()
            if not self._yielding:
                self._transport.resume_reading()
        return data

    @property
    def ended(self) -> bool:
        return self._complete and not self._body

    def finish(self) -> bool:
        """The exchange is over. True if the connection may serve another one; else it is closed."""
        reusable = self.ended and self._keep_alive and not self._spoiled and self._error is None and self.usable
        self._parser = None
        self.idle_since = self._loop.time()
        if not reusable:
            self.abort()
        return reusable

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and data:
            self._transport.write(data)

    async def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(data), WRITE_PIECE_BYTES):
            self._write(bytes(view[start : start + WRITE_PIECE_BYTES]))
            if self._writable is not None:
                await asyncio.shield(self._writable)
            self._active_at = self._loop.time()
            if self._complete or self._transport is None:
                return

    def _ends_with_connection(self) -> bool:
        names = {name.lower() for name, _ in self.headers}
        return not names & {b"content-length", b"transfer-encoding"}

    def check_time(self, now_s: float) -> None:
        """End the exchange if it is over its limits. Called now and then for every connection: no timer for each."""
        if self._parser is None or self._complete:
            return
        limits = self._timeouts
        idle_s = limits.idle_s if self._head_done else limits.first_byte_s
        silent = not self._paused and now_s - self._active_at > idle_s
        if not silent and now_s - self._began_at <= limits.total_s:
            return
        limit = "request_timeout_s"
        if silent:
            limit = "chunk_idle_timeout_s" if self._head_done else "first_byte_timeout_s"
        self._fail("upstream_timeout", f"the provider {'sent nothing' if silent else 'did not finish'} in time", limit)
        self._wake()
        self.abort()

    def _fail(self, code: str, why: str, limit: str | None = None) -> None:
        if self._error is None:
            self._error = ObolError(code, why, limit=limit)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
