"""One connection to Redis whose commands coalesce: all that are issued in one tick of the loop leave in one write,
unless nothing is in flight, when a command leaves at once.

Concurrent requests share it, so a hundred holds cost one system call and, with `appendfsync always`, one fsync.
Replies come back in order. A reply that does not come in time closes the connection: everything in flight
fails with LedgerAway (its outcome unknown, which is why every script is idempotent) and a new connection is made.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

import hiredis

from gateway.errors import ConfigurationError
from gateway.ledger.scripts import Script

Argument = str | bytes | int


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

    def __init__(self, lost: Callable[[], None]) -> None:
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit asyncio's classes, so this is a cast and no isinstance.
        self._transport = cast(asyncio.Transport, transport)

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
                future, _ = self._waiting.popleft()
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

    def oldest_age_s(self) -> float:
        return time.monotonic() - self._waiting[0][1] if self._waiting else 0.0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


_INCOMPLETE = object()


class Connection:
    """A supervised connection: `run()` keeps it open, `call()` and `script()` use it."""

    def __init__(
        self,
        url: str,
        scripts: Mapping[str, Script] = MappingProxyType({}),
        *,
        timeout_ms: int = 5_000,
        pending_max: int = 50_000,
    ) -> None:
        self._address = Address(url)
        self._scripts = scripts
        self._timeout_s = timeout_ms / 1000
        self._pending_max = pending_max
        self._protocol: _Protocol | None = None
        self._closed = asyncio.Event()
        self._broken = asyncio.Event()
        self._ready = asyncio.Event()
        self.generation = 0
        """How often a connection was made: it changes when what was said before may be lost."""

    @property
    def unsent(self) -> bool:
        """Commands were issued in this tick and leave in the next."""
        return self._protocol is not None and self._protocol.unsent

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

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
        if protocol is None or not self._ready.is_set():
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
            raise _translate(reply)
        return reply

    async def command(self, *arguments: Argument) -> Any:
        """One command whose error reply is raised."""
        reply = await self.call(*arguments)
        if isinstance(reply, hiredis.ReplyError):
            raise _translate(reply)
        return reply

    async def run(self) -> None:
        """Connect, watch, connect again with jittered backoff, until `close()`."""
        delay_s = 0.05
        while not self._closed.is_set():
            try:
                await self._connect()
                delay_s = 0.05
                await self._watch()
            except (OSError, LedgerAway, hiredis.ReplyError, TimeoutError):
                pass
            finally:
                self._ready.clear()
                if self._protocol is not None:
                    self._protocol.abort()
                    self._protocol = None
            if not self._closed.is_set():
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
                delay_s = min(delay_s * 2, 2.0)

    async def close(self) -> None:
        self._closed.set()
        self._broken.set()

    async def _connect(self) -> None:
        self._broken = asyncio.Event()
        if self._closed.is_set():
            return
        loop = asyncio.get_running_loop()
        address = self._address
        opening = loop.create_connection(
            lambda: _Protocol(self._lost), address.host, address.port, ssl=address.tls or None
        )
        _, protocol = await asyncio.wait_for(opening, self._timeout_s)
        self._protocol = protocol
        for command in self._greeting():
            reply = await asyncio.wait_for(protocol.send(_pack(command)), self._timeout_s)
            if isinstance(reply, hiredis.ReplyError):
                raise reply
        self.generation += 1
        self._ready.set()

    def _lost(self) -> None:
        self._ready.clear()
        self._broken.set()

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
        while not self._broken.is_set() and self._protocol is not None:
            try:
                await asyncio.wait_for(self._broken.wait(), self._timeout_s / 4)
            except TimeoutError:
                if self._protocol.oldest_age_s() > self._timeout_s:
                    return


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
