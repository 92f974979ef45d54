"""The answer to the client, written as the provider wrote it.

aiohttp's StreamResponse would rebuild the headers and add its own; this one writes the provider's status line and
header pairs as they came, and the head together with the first bytes of the body in one write.
"""

from __future__ import annotations

import socket
import struct

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from gateway.proxy.http_client import HeaderPairs
from gateway.proxy.parts import Parts

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for a close that resets: `abort` alone ends the connection as orderly as any other close."""
WRITE_HIGH_BYTES = 64 * 1024
"""Unsent bytes at which the next write waits for the client."""


class ClientGone(Exception):
    """The client closed its connection."""


class Downstream(web.StreamResponse):
    """A response whose head and body are given as raw bytes. `begin`, `write`, `end`."""

    def __init__(self, parts: Parts, request: web.BaseRequest) -> None:
        super().__init__()
        self._parts = parts
        self._request = request
        self._transport = request.transport
        self._begun = False
        self._ended = False
        self._chunked = False
        self._bodiless = False
        self._head = b""
        self._close_after = False
        self.open_ended = False
        """The length of the body was not told: more may be added to it."""
        self.missed = False
        """The client was gone when there was something to send."""

    @property
    def gone(self) -> bool:
        """The client closed its connection."""
        return self._transport is None or self._transport.is_closing()

    @property
    def begun(self) -> bool:
        """Something has been sent: the status can no longer be changed."""
        return self._begun

    @property
    def prepared(self) -> bool:
        return self._begun

    @property
    def keep_alive(self) -> bool | None:
        return self._request.keep_alive and not self._close_after

    def begin(self, status: int, reason: str, headers: HeaderPairs) -> None:
        """Set the head. It leaves with the first bytes of the body, or at the end."""
        self.set_status(status, reason)
        # Not later: a client that was not told would send its next call into a connection that closes.
        self._close_after = self._parts.draining or self._request.content.exception() is not None
        names = {name.lower() for name, _ in headers}
        self._bodiless = self._request.method == "HEAD" or status in (204, 304)
        lines = [f"HTTP/1.1 {status} {reason}\r\n".encode("latin-1")]
        lines += [b"%b: %b\r\n" % pair for pair in headers]
        self.open_ended = not self._bodiless and b"content-length" not in names
        self._chunked = False
        if self.open_ended:
            if self._request.version >= HttpVersion11:
                self._chunked = True
                lines.append(b"Transfer-Encoding: chunked\r\n")
            else:
                self._close_after = True
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send body bytes; wait while the client is behind. Raise ClientGone."""
        self._send(bytes(data))
        await self.drain()

    def offer(self, data: bytes) -> bool:
        """Send body bytes without waiting. False: the client is behind or gone; `drain` tells which."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self.missed = True
            return False
        if self._head or self._bodiless or not self._chunked:
            self._send(data)
        else:
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return transport.get_write_buffer_size() <= WRITE_HIGH_BYTES

    async def drain(self) -> None:
        """Wait while the client is behind. Raise ClientGone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ClientGone
        if transport.get_write_buffer_size() > WRITE_HIGH_BYTES:
            try:
                await self._request.writer.drain()
            except ConnectionError:
                raise ClientGone from None

    def _send(self, data: bytes, *, last: bool = False) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            self.missed = True
            raise ClientGone
        parts = [self._head] if self._head else []
        self._head = b""
        self._begun = True
        if data and not self._bodiless:
            parts += [b"%x\r\n" % len(data), data, b"\r\n"] if self._chunked else [data]
        if last and self._chunked:
            parts.append(b"0\r\n\r\n")
        if parts:
            transport.write(b"".join(parts))

    def end(self, data: bytes = b"") -> None:
        """The last bytes, and the end of the body. Raise ClientGone."""
        self._ended = True
        self._send(data, last=True)

    @property
    def ends_by_close(self) -> bool:
        """Nothing but the end of the connection tells the client where the body ends."""
        return self._begun and self.open_ended and not self._chunked

    def cut(self) -> None:
        """End it so that the client sees it is not complete."""
        self._ended = True
        transport = self._transport
        if transport is None:
            return
        if self.ends_by_close and not transport.is_closing():
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        transport.abort()

    # What aiohttp calls once the handler has returned: everything has been written by then.

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        if not self._ended:
            self.cut()
