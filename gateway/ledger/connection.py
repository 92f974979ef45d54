"""One connection to Redis whose commands coalesce: all that are issued in one tick of the loop leave in one write,
unless nothing is in flight, when a command leaves at once.

Concurrent requests share it, so a hundred holds cost one system call and, with `appendfsync always`, one fsync.
Replies come back in order. A reply that does not come in time closes the connection: everything in flight
fails with LedgerAway (its outcome unknown, which is why every script is idempotent) and a new connection is made.

A connection is used once its server has been greeted: it is a primary, `on_new_server` has accepted it if it is not the
one of before, and what has to come first on a new connection (`before_ready`) has been done.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

import hiredis

from gateway.errors import ConfigurationError
from gateway.ledger.scripts import Script
from gateway.ledger.server import UNKNOWN, Server

LOG = logging.getLogger("obol.ledger")
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
LOOK_INTERVAL_S = 2.0
"""How often a server is asked whether it is still a primary, and what it does with what it acknowledges."""
ACCEPT_TIMEOUT_S = 60.0

Argument = str | bytes | int
Step = Callable[[], Awaitable[None]]


class LedgerAway(Exception):
    """Redis did not answer. What was asked may have been done, unless `sent` is False."""

    def __init__(self, why: str, *, sent: bool = True) -> None:
        super().__init__(why)
        self.sent = sent


class Issued(NamedTuple):
    """A script under way, and what it takes to send it whole."""

    name: str
    keys: Sequence[str]
    arguments: Sequence[Argument]
    future: asyncio.Future[Any]


class Address:
    """host, port, database and credentials of a redis:// URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise ConfigurationError("OBOL_REDIS_URL must look like redis://[:password@]host:6379/0")
        self.host, self.port, self.tls = parts.hostname, parts.port or 6379, parts.scheme == "rediss"
        self.username = unquote(parts.username or "") or "default"
        self.password = unquote(parts.password or "")
        self.database = int(parts.path.strip("/") or 0)


class _Protocol(asyncio.Protocol):
    """Bytes in and out of one socket: packs nothing, knows nothing of scripts."""

    def __init__(self, lost: Callable[[], None], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self.alive_s = 0.0
        """When the last command that was answered had been issued (monotonic clock). Not when its answer was read: that
        may have waited here since before the server died."""
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit asyncio's classes, so this is a cast and no isinstance.
        self._transport = cast(asyncio.Transport, transport)
        self._check_age()

    def _check_age(self) -> None:
        """Again and again while connected: a reply that is overdue ends the connection."""
        if self._transport is None:
            return
        if self._waiting and time.monotonic() - self._waiting[0][1] > self._timeout_s:
            self.abort()
        else:
            self._loop.call_later(self._timeout_s / 4, self._check_age)

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        if self._transport is None:  # lost, and not yet made anew: nobody would ever answer
            raise LedgerAway("the connection to Redis was lost", sent=False)
        future = self._loop.create_future()
        alone = not self._waiting
        self._waiting.append((future, time.monotonic()))
        if alone:  # nobody to wait for: it leaves at once
            self._transport.write(packed)
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        return future

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                future, self.alive_s = self._waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(LedgerAway("the connection to Redis was lost"))
        self._lost()

    @property
    def pending(self) -> int:
        return len(self._waiting)

    @property
    def unsent(self) -> bool:
        return bool(self._out)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


_INCOMPLETE = object()
_GREETING: ContextVar[object] = ContextVar("greeting", default=None)
"""The connection on whose behalf the current task greets a server: it may use it before all others."""


class Connection:
    """A supervised connection: `run()` keeps it open, `call()` and `script()` use it.

    `on_new_server` is awaited with the server's run id on the first connection, and whenever the server is not the one
    that was accepted last (another process, or one that was a replica in between), before the connection is ready.
    It may use the connection; everybody else gets LedgerAway until then. If it raises, the connection is dropped and
    tried again.
    """

    def __init__(
        self,
        url: str,
        scripts: Mapping[str, Script] = MappingProxyType({}),
        *,
        timeout_ms: int = 5_000,
        pending_max: int = 50_000,
        on_new_server: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._address = Address(url)
        self._scripts = scripts
        self._timeout_s = timeout_ms / 1000
        self._pending_max = pending_max
        self._protocol: _Protocol | None = None
        self._closed = asyncio.Event()
        self._broken = asyncio.Event()
        self._ready = asyncio.Event()
        self._on_new_server = on_new_server
        self._steps: list[Step] = []
        self._accepted: tuple[str, str] | None = None
        self._told = ""
        self.generation = 0
        """How often a connection was made: it changes when what was said before may be lost."""
        self.server: Server = UNKNOWN
        """What the server said of itself last."""

    @property
    def unsent(self) -> bool:
        """Commands were issued in this tick and leave in the next."""
        return self._protocol is not None and self._protocol.unsent

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

    @property
    def alive_s(self) -> float:
        """The server of this connection is known to have been alive then (monotonic clock), or later. 0: not known."""
        return 0.0 if self._protocol is None else self._protocol.alive_s

    def before_ready(self, step: Step) -> None:
        """Await `step` on each connection that is made from now on, before it is ready. It may use the connection;
        if it raises, the connection is dropped and tried again."""
        self._steps.append(step)

    async def wait_ready(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            raise LedgerAway("Redis does not answer") from None

    def call(self, *arguments: Argument) -> asyncio.Future[Any]:
        """Issue one command; the future gives its reply, or raises LedgerAway or hiredis.ReplyError on await."""
        return self._send(_pack(arguments))

    def _send(self, packed: bytes) -> asyncio.Future[Any]:
        protocol = self._protocol
        if protocol is None or not (self._ready.is_set() or _GREETING.get() is self):
            raise LedgerAway("Redis is away", sent=False)
        if protocol.pending >= self._pending_max:
            raise LedgerAway("too many commands are waiting for Redis", sent=False)
        return protocol.send(packed)

    def issue(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> asyncio.Future[Any]:
        """Run one script once. It leaves in the next tick; the future has the reply, which may be a ReplyError."""
        return self._send(_pack((b"EVALSHA", self._scripts[name].sha1, len(keys), *keys, *arguments)))

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run one script and give its reply; where the server does not know the script, it is sent whole."""
        return await self.answer(Issued(name, keys, arguments, self.issue(name, keys, arguments)))

    async def answer(self, issued: Issued) -> Any:
        """The reply to a script that was issued before."""
        reply = await issued.future
        script, keys, arguments = self._scripts[issued.name], issued.keys, issued.arguments
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await self.call(b"EVAL", script.source, len(keys), *keys, *arguments)
        if isinstance(reply, hiredis.ReplyError):
            raise self._error(reply)
        return reply

    async def command(self, *arguments: Argument) -> Any:
        """One command whose error reply is raised."""
        reply = await self.call(*arguments)
        if isinstance(reply, hiredis.ReplyError):
            raise self._error(reply)
        return reply

    def _error(self, reply: hiredis.ReplyError) -> Exception:
        error = _translate(reply)
        if str(reply).startswith("READONLY") and self._protocol is not None:
            self._protocol.abort()  # a replica by now: the address may lead to the new primary
        return error

    async def run(self) -> None:
        """Connect, watch, connect again with jittered backoff, until `close()`."""
        delay_s = RETRY_FIRST_S
        while not self._closed.is_set():
            try:
                await self._connect()
                delay_s = RETRY_FIRST_S
                await self._watch()
            except (OSError, LedgerAway, hiredis.ReplyError, TimeoutError) as error:
                self._tell(str(error) or type(error).__name__)
            finally:
                self._ready.clear()
                if self._protocol is not None:
                    self._protocol.abort()
                    self._protocol = None
            if not self._closed.is_set():
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
                delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def close(self) -> None:
        self._closed.set()
        self._broken.set()
        if self._protocol is not None:
            self._protocol.abort()

    async def _connect(self) -> None:
        self._broken = asyncio.Event()
        if self._closed.is_set():
            return
        loop = asyncio.get_running_loop()
        address = self._address
        opening = loop.create_connection(
            lambda: _Protocol(self._lost, self._timeout_s), address.host, address.port, ssl=address.tls or None
        )
        _, protocol = await asyncio.wait_for(opening, self._timeout_s)
        self._protocol = protocol
        for reply in await asyncio.gather(*(protocol.send(_pack(command)) for command in self._greeting())):
            if isinstance(reply, hiredis.ReplyError):
                raise _translate(reply)
        await self._look(protocol)
        await self._admit()
        LOG.info("connected to Redis", extra=self.server.described())
        for danger in self.server.dangers():
            LOG.warning("this Redis may lose money", extra={"why": danger})
        self._told = ""

    async def _admit(self) -> None:
        await self._accept()
        if self._broken.is_set():
            raise LedgerAway("the connection to Redis was lost")
        self.generation += 1
        self._ready.set()

    async def _look(self, protocol: _Protocol) -> None:
        """Ask the server what it is. Raise LedgerAway where it is no primary."""
        told, setting = await asyncio.gather(
            protocol.send(_pack((b"INFO",))), protocol.send(_pack((b"CONFIG", b"GET", b"appendfsync")))
        )
        if isinstance(told, hiredis.ReplyError):
            raise LedgerAway(f"Redis does not tell what it is (INFO): {told}")
        self.server = Server.told(told, setting).after(self.server)
        if self.server.role != "master":
            raise LedgerAway(f"the server is a {self.server.role or 'server without a role'}, not a primary")

    async def _accept(self) -> None:
        """Let nobody else use the connection until the server is known to hold what it must. Raise LedgerAway."""
        token = _GREETING.set(self)
        try:
            async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                if self._on_new_server is not None and self._accepted != self.server.identity:
                    await self._on_new_server(self.server.run_id)
                self._accepted = self.server.identity
                for step in self._steps:
                    await step()
        except Exception as error:
            raise LedgerAway(f"the server is not accepted yet: {str(error) or type(error).__name__}") from error
        finally:
            _GREETING.reset(token)

    def _lost(self) -> None:
        self._ready.clear()
        self._broken.set()

    def _tell(self, why: str) -> None:
        """Log why there is no connection, once for each reason and not for each attempt."""
        if why != self._told and not self._closed.is_set():
            LOG.warning("Redis is away", extra={"why": why})
        self._told = why

    def _greeting(self) -> list[tuple[Argument, ...]]:
        address = self._address
        commands: list[tuple[Argument, ...]] = []
        if address.password:
            commands.append((b"AUTH", address.username, address.password))
        if address.database:
            commands.append((b"SELECT", address.database))
        commands += [(b"SCRIPT", b"LOAD", script.source) for script in self._scripts.values()]
        return commands

    async def _watch(self) -> None:
        """Until the connection is lost; its server may become a replica, or change what it does for safety."""
        while not self._broken.is_set() and self._protocol is not None:
            try:
                await asyncio.wait_for(self._broken.wait(), LOOK_INTERVAL_S)
            except TimeoutError:
                await self._look(self._protocol)
                if self.server.identity != self._accepted:  # it was a replica, and took over another's data
                    self._ready.clear()
                    await self._admit()
        if not self._closed.is_set():
            raise LedgerAway("the connection to Redis was lost")


def _pack(arguments: tuple[Argument, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(cast(Any, arguments))
    return packed


# Replies that mean "not now", whoever asks: loading, read-only replica, out of memory, cluster moving.
_AWAY_PREFIXES = (
    "LOADING",
    "READONLY",
    "OOM",
    "MISCONF",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MASTERDOWN",
    "NOREPLICAS",
    "BUSY",
)


def _translate(reply: Any) -> Exception:
    text = str(reply)
    if text.startswith(_AWAY_PREFIXES) or "OOM" in text[:120]:
        return LedgerAway(f"Redis refuses: {text[:120]}")
    assert isinstance(reply, Exception)
    return reply
