"""The server side of HTTP: aiohttp's, behind a strict parser, with limits of time and number.

aiohttp gives each request to a handler; this module decides what is a request. What is not is answered here, in JSON,
and its connection ends. A timer runs only for a connection of which part of a request has come.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from gateway.errors import ObolError
from gateway.metrics import Metrics
from gateway.proxy.refusal import last_answer
from gateway.proxy.strict import Parser, Refused, StrictParser
from gateway.settings import Settings

CHECK_INTERVAL_S = 1.0
SLOW_BODY_GRACE_S = 10.0
"""A body's rate is looked at when it has been coming for so long."""
LINGER_S = 1.0
"""How long a client that was refused may go on sending into the void: to close at once would lose it the answer."""


class Listener(web.AppRunner):
    """aiohttp's runner of an application, with our connections."""

    def __init__(
        self, app: web.Application, settings: Settings, metrics: Metrics, *, shutdown_timeout_s: float
    ) -> None:
        super().__init__(
            app,
            handle_signals=False,
            access_log=None,
            shutdown_timeout=shutdown_timeout_s,
            keepalive_timeout=settings.client_idle_connection_s,
            auto_decompress=False,  # a body passes as it was sent
            max_line_size=settings.max_header_bytes,
            max_field_size=settings.max_header_bytes,
            max_headers=settings.max_headers,
        )
        self._settings = settings
        self._metrics = metrics

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(made, self._settings, self._metrics, self._kwargs)


class Server(web.Server):
    """Makes a `Connection` for each client."""

    def __init__(self, made: web.Server, settings: Settings, metrics: Metrics, options: dict[str, Any]) -> None:
        super().__init__(made.request_handler, request_factory=made.request_factory)
        self._options = options
        self.settings = settings
        self.metrics = metrics
        self.connections_open = 0

    def __call__(self) -> Connection:
        return Connection(self, asyncio.get_running_loop(), self._options)

    @property
    def in_progress(self) -> list[web.BaseRequest]:
        """What handlers work on."""
        found = (cast(Connection, connection).request for connection in self.connections)
        return [request for request in found if request is not None]

    def count(self, error: ObolError) -> None:
        """One more request refused before any handler saw it."""
        self.metrics.refusals.labels(error.code).inc()
        self.metrics.limit_reached(error.limit)


class Connection(web.RequestHandler):
    """A client's connection."""

    __slots__ = ("_began_at", "_checked_at", "_gone", "_heard_at", "_part", "_server", "_strict", "_timer")

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop, options: dict[str, Any]) -> None:
        super().__init__(server, loop=loop, **options)
        self._server = server
        self._strict = StrictParser(
            cast(Parser, self._parser),
            head_max_bytes=server.settings.max_header_bytes,
            headers_max=server.settings.max_headers,
        )
        self._parser = cast(Any, self._strict)
        self._timer: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] | None = None
        self._part = 0
        self._began_at = self._heard_at = self._checked_at = 0.0

    @property
    def request(self) -> web.BaseRequest | None:
        """The request that a handler works on, also when its client has left."""
        return self._current_request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        server = self._server
        server.connections_open += 1
        if server.connections_open > server.settings.client_connections_max:
            why = "this gateway has as many connections as it may"
            error = ObolError("too_many_connections", why, retry_after_s=1, limit="client_connections_max")
            self._strict.failed = True
            server.count(error)
            self._end_with(error)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.connections_open -= 1
        if self._timer is not None:
            self._timer.cancel()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if self._strict.body is not None:  # aiohttp would wait on for the rest of a body that was refused
            self._strict.body.set_exception(ConnectionResetError("the client has left"))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        strict = self._strict
        if strict.receiving:
            self._watch()
        elif strict.overrun:
            self._close = True

    def _watch(self) -> None:
        """The rest of a request is awaited."""
        now = self._heard_at = self._loop.time()
        if self._timer is None or self._part != self._strict.part:
            self._part = self._strict.part
            self._began_at = now
        if self._timer is None:
            self._look_again(now)

    def _look_again(self, now: float) -> None:
        self._checked_at = now
        self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.transport is None or not self._strict.receiving:
            return
        now = self._loop.time()
        if self._waits_for_us():
            self._began_at += now - self._checked_at
            self._heard_at = now
        elif (error := self._too_slow(now)) is not None:
            self._refuse(error)
            return
        self._look_again(now)

    def _waits_for_us(self) -> bool:
        """The client cannot go on: its data is not read, or the answer before this one is on its way."""
        busy = self._strict.body is None and self._current_request is not None
        return busy or self._reading_paused or self._buffer_paused

    def _too_slow(self, now: float) -> ObolError | None:
        settings, took_s = self._server.settings, now - self._began_at
        body, least = self._strict.body, settings.request_body_min_bytes_per_s
        if body is None:
            late, limit = took_s >= settings.request_head_timeout_s, "request_head_timeout_s"
        elif now - self._heard_at >= settings.request_body_idle_timeout_s:
            late, limit = True, "request_body_idle_timeout_s"
        elif took_s >= SLOW_BODY_GRACE_S and body.total_bytes < least * took_s:
            late, limit = True, "request_body_min_bytes_per_s"
        else:
            late, limit = took_s >= settings.request_timeout_s, "request_timeout_s"
        what = "head" if body is None else "body"
        return ObolError("request_timeout", f"the request's {what} came too slowly", limit=limit) if late else None

    def _refuse(self, error: ObolError) -> None:
        """End what is being received: by its handler, else by ourselves."""
        self._server.metrics.limit_reached(error.limit)
        error.limit = None  # counted, whoever tells it
        try:
            self._strict.refuse(error)
        except Refused:
            self._server.count(error)
            self._end_with(error)

    def _end_with(self, error: ObolError) -> None:
        """Say the last that is said on this connection, and close it a little later."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(last_answer(error))
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(LINGER_S, self.force_close)

    async def end_with(self, error: ObolError) -> None:
        """The same, behind the answers before; returns when the connection may be closed."""
        self._strict.failed = True
        self._end_with(error)
        self._gone = self._loop.create_future()
        await asyncio.wait([self._gone], timeout=LINGER_S)

    # What aiohttp calls where a request cannot be handled, or its handler has failed.

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, Refused):
            error = exc.error
        else:
            error = ObolError("internal", "the gateway failed on this request")
            self.log_exception("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer has been sent")
        self._server.count(error)
        return LastAnswer(self, error)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        # What a client was told about its own body, and that it has left, is no failure of ours.
        if not isinstance(kw.get("exc_info"), ObolError | ConnectionError):
            super().log_exception(*args, **kw)


class LastAnswer(web.StreamResponse):
    """The answer that ends a connection."""

    def __init__(self, connection: Connection, error: ObolError) -> None:
        super().__init__(status=error.status)
        self._connection = connection
        self._error = error

    @property
    def keep_alive(self) -> bool | None:
        return False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        await self._connection.end_with(self._error)
