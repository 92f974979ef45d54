"""Writes a reply at its pace, compressed or cut short, and says how it ended."""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from dataclasses import dataclass
from itertools import islice

from aiohttp import web

from gateway.local.fake.directive import Directive
from gateway.local.fake.faults import STALL_MAX_S, Course, Ending, compresses, under_fault
from gateway.local.fake.records import Record
from gateway.local.fake.reply import Reply

YIELD_EVERY_WRITES = 64
GZIP_WINDOW_BITS = 31


@dataclass(slots=True)
class Outgoing:
    """One response under way: compresses where asked, counts what it writes."""

    response: web.StreamResponse
    record: Record
    gzip: zlib._Compress | None = None

    async def write(self, data: bytes) -> None:
        if not data:
            return
        if self.gzip is not None:
            data = self.gzip.compress(data) + self.gzip.flush(zlib.Z_SYNC_FLUSH)
        self.record.response_bytes += len(data)
        await self.response.write(data)

    async def finish(self) -> None:
        if self.gzip is not None:
            closing = self.gzip.flush()
            self.record.response_bytes += len(closing)
            await self.response.write(closing)
        await self.response.write_eof()


async def send(request: web.Request, reply: Reply, directive: Directive, record: Record) -> web.StreamResponse:
    """Send `reply` as `directive` has it; `record.outcome` tells how it ended unless the client went first."""
    fault = directive.parsed_fault
    await asyncio.sleep((directive.delay_ms + (fault.value if fault.name == "slow_first_byte" else 0)) / 1_000)
    if fault.name == "reset_before_first_byte":
        return reset(request, record)
    reply, plan = under_fault(reply, fault)
    record.status = reply.status
    zipped = compresses(directive, request.headers.get("Accept-Encoding", ""))
    response = web.StreamResponse(status=reply.status, headers={**reply.headers, "Content-Type": reply.content_type})
    if zipped:
        response.headers["Content-Encoding"] = "gzip"
    if not reply.stream and not zipped:
        response.content_length = sum(map(len, reply.deltas)) + len(reply.tail)
    await response.prepare(request)
    compressor = zlib.compressobj(wbits=GZIP_WINDOW_BITS) if zipped else None
    out = Outgoing(response, record, compressor)
    await _write_deltas(out, reply, plan, directive.chunk_delay_ms if reply.stream else 0)
    return await _end(request, out, reply, plan.ending)


async def _write_deltas(out: Outgoing, reply: Reply, plan: Course, delay_ms: int) -> None:
    await out.write(reply.head)
    for index, delta in enumerate(islice(reply.deltas, plan.deltas), start=1):
        await out.write(delta)
        if delay_ms:
            await asyncio.sleep(delay_ms / 1_000)
        elif index % YIELD_EVERY_WRITES == 0:
            await asyncio.sleep(0)


async def _end(request: web.Request, out: Outgoing, reply: Reply, ending: Ending) -> web.StreamResponse:
    if ending is Ending.RESET:
        # Until the loop has run once more the bytes before the reset may not have left.
        await asyncio.sleep(0.01)
        return reset(request, out.record)
    if ending is Ending.STALL:
        await asyncio.sleep(STALL_MAX_S)
        return _close(request, out)
    if ending is Ending.NOTHING and not reply.stream:
        return _close(request, out)
    if ending is not Ending.NOTHING:
        await out.write(reply.error if ending is Ending.ERROR else reply.tail)
    await out.finish()
    out.record.outcome = "completed"
    return out.response


def _close(request: web.Request, out: Outgoing) -> web.StreamResponse:
    """End the connection although the body is not complete."""
    out.record.outcome = "closed"
    if request.transport is not None:
        request.transport.close()
    return out.response


def reset(request: web.Request, record: Record) -> web.StreamResponse:
    """Drop the connection with a TCP reset (a close with linger 0), not an orderly end."""
    record.outcome = "reset"
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()
