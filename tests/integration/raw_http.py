"""Bytes on a socket: what a client sends that no HTTP library would, and a provider that counts what reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

ANSWER_TIMEOUT_S = 10


class Answer:
    """One HTTP response, read to its Content-Length."""

    def __init__(self, line: bytes, headers: dict[str, str], body: bytes) -> None:
        self.version, status, self.reason = line.decode("latin-1").split(" ", 2)
        self.status = int(status)
        self.headers = headers
        self.body = body

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """A connection to a gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *blocks: bytes) -> None:
        """Each block in a write of its own, far enough apart to be read apart."""
        for number, block in enumerate(blocks):
            if number:
                await asyncio.sleep(0.03)
            self.writer.write(block)
            await self.writer.drain()

    async def answer(self) -> Answer | None:
        """The next response, 100 Continue included; None at the end of the connection."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            line = await self.reader.readline()
            if not line:
                return None
            headers = {}
            while (header := await self.reader.readline()) not in (b"\r\n", b""):
                name, _, value = header.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(line.rstrip(b"\r\n"), headers, body)

    async def ended(self) -> bool:
        """Whether nothing more comes: the gateway has closed, or reset, the connection."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@contextlib.asynccontextmanager
async def raw_client(url: str) -> AsyncIterator[RawClient]:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class RawProvider:
    """Keeps every byte that it is sent, and answers nothing until it has seen `until` (b"": never)."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.connections = 0
        self.reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.until = b"\r\n\r\n"
        self.paused: asyncio.Event | None = None
        """Nothing is read before it is set."""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        seen = b""
        with contextlib.suppress(ConnectionError):
            if self.paused is not None:
                await self.paused.wait()
            while data := await reader.read(65536):
                self.received += data
                seen = seen[-len(self.until) :] + data
                if self.until and self.until in seen:
                    writer.write(self.reply)
                    seen = b""
        writer.close()

    def clear(self) -> None:
        self.received.clear()
        self.connections = 0


@contextlib.asynccontextmanager
async def raw_provider() -> AsyncIterator[RawProvider]:
    provider = RawProvider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()


def request(line: str, headers: Sequence[str | bytes] = (), body: bytes = b"") -> bytes:
    """A request as given: nothing is added but line ends."""
    head = [line, *headers, ""]
    return b"".join((part.encode("latin-1") if isinstance(part, str) else part) + b"\r\n" for part in head) + body
