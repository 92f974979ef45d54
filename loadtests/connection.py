"""One keep-alive connection of the load client, and the clock readings of the exchange on it.

A protocol on a C parser: the client must be cheaper than anything it measures.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

import httptools

from loadtests.scenario import Template
from loadtests.tally import Tally

STREAM_END = b"data: [DONE]"
_TAIL_BYTES = 32


class Owner(Protocol):
    """Who holds the connections and is told when one is free again or lost."""

    response_bytes_max: int

    def tally(self, kind: str) -> Tally: ...

    def connection_free(self, connection: Connection, /) -> None: ...

    def connection_lost(self, connection: Connection, /) -> None: ...


class Connection(asyncio.Protocol):
    """Sends one request at a time and records its answer in the owner's tallies."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._template: Template | None = None
        self._reset(0, 0)

    def _reset(self, intended_ns: int, sent_ns: int) -> None:
        self._intended_ns = intended_ns
        self.sent_ns = sent_ns
        self._first_byte_ns = 0
        self._arrived_ns = self._last_arrival_ns = 0
        self._chunk_end = False
        self._bytes = 0
        self._chunks = 0
        self._tail = b""

    @property
    def busy(self) -> bool:
        return self._template is not None

    @property
    def lost(self) -> bool:
        return self._transport is None

    def send(self, template: Template, number: int, intended_ns: int, now_ns: int) -> None:
        """Send request `number`; its latency counts from `intended_ns`."""
        assert self._transport is not None and self._template is None
        self._template = template
        self._reset(intended_ns, now_ns)
        self._transport.write(template.render(number))

    def give_up(self, reason: str, now_ns: int) -> None:
        """Fail the exchange under way and drop the connection."""
        self._fail(reason, now_ns)
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._arrived_ns = time.perf_counter_ns()
        if self._first_byte_ns and self._template is not None and self._template.streams:
            self._owner.tally(self._template.kind).chunk_gap.record(self._arrived_ns - self._last_arrival_ns)
        self._last_arrival_ns = self._arrived_ns
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.give_up("not HTTP", self._arrived_ns)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail("connection closed" if exc is None else "connection reset", time.perf_counter_ns())
        self._owner.connection_lost(self)

    # httptools

    def on_body(self, body: bytes) -> None:
        if not self._first_byte_ns:
            self._first_byte_ns = self._arrived_ns
        self._bytes += len(body)
        if self._template is not None and self._template.streams:
            self._count_chunks(body)
        if self._bytes > self._owner.response_bytes_max:
            self.give_up("response too large", self._arrived_ns)

    def on_message_complete(self) -> None:
        template, status = self._template, self._parser.get_status_code()
        if template is None or status < 200:
            return
        if not 200 <= status < 300:
            self._refused(template, status)
        elif template.streams and STREAM_END not in self._tail:
            self._fail("stream cut short", self._arrived_ns)
        else:
            self._succeed(template)
        if self._parser.should_keep_alive():
            self._owner.connection_free(self)
        else:
            self.close()

    # accounting

    def _count_chunks(self, body: bytes) -> None:
        """Count event ends, also one that is split between two pieces."""
        self._chunks += body.count(b"\n\n")
        if self._chunk_end and body.startswith(b"\n") and not body.startswith(b"\n\n"):
            self._chunks += 1
        self._chunk_end = body.endswith(b"\n") and not body.endswith(b"\n\n")
        self._tail = body[-_TAIL_BYTES:] if len(body) >= _TAIL_BYTES else (self._tail + body)[-_TAIL_BYTES:]

    def _succeed(self, template: Template) -> None:
        tally = self._owner.tally(template.kind)
        tally.succeeded += 1
        tally.response_bytes += self._bytes
        tally.chunks += self._chunks
        tally.service.record(self._arrived_ns - self.sent_ns)
        tally.latency.record(self._arrived_ns - self._intended_ns)
        if self._first_byte_ns:
            tally.first_byte.record(self._first_byte_ns - self._intended_ns)
        self._template = None

    def _refused(self, template: Template, status: int) -> None:
        """An error answer is counted, not timed: a quick refusal must not flatter the percentiles."""
        self._owner.tally(template.kind).fail(f"status {status}")
        self._template = None

    def _fail(self, reason: str, now_ns: int) -> None:
        """No (whole) answer: the time waited is in the latencies, since leaving it out would flatter them."""
        if self._template is None:
            return
        tally = self._owner.tally(self._template.kind)
        tally.fail(reason)
        tally.latency.record(now_ns - self._intended_ns)
        self._template = None
