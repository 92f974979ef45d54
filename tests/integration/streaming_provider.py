"""A provider that answers with long streams as fast as they are taken, and a client of them that can stand still."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import aiohttp

SOCKET_BUFFER_BYTES = 64 * 1024
"""Asked of the kernel at both ends, which else takes some megabytes before anybody notices that nobody reads."""
USAGE = {"prompt_tokens": 1_000, "completion_tokens": 500, "total_tokens": 1_500}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(content: str | None, usage: dict[str, int] | None = None, padding: str = "") -> bytes:
    """An event of a chat stream; the usage-only one without `content`. `padding` is no text, as vendors send it."""
    choices = [] if content is None else [{"index": 0, "delta": {"content": content}}]
    fields = {"id": "c", "model": "gpt-4o-mini", "choices": choices, "usage": usage}
    padded = {"obfuscation": padding} if padding else {}
    return b"data: " + json.dumps(fields | padded, separators=(",", ":")).encode() + b"\n\n"


def chat_stream(size_bytes: int, event_bytes: int = 48 * 1024) -> Iterator[bytes]:
    """Events of `event_bytes` until there are `size_bytes`, then the usage and the end. Few bytes are text."""
    event = chunk("a word or two ", padding="x" * event_bytes)
    for _ in range(max(1, size_bytes // len(event))):
        yield event
    yield chunk(None, USAGE)
    yield b"data: [DONE]\n\n"


def digest(pieces: Iterable[bytes]) -> str:
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return hashed.hexdigest()


async def received(answer: aiohttp.ClientResponse) -> str:
    """The digest of an answer, read to its end."""
    hashed = hashlib.sha256()
    async for piece in answer.content.iter_any():
        hashed.update(piece)
    return hashed.hexdigest()


class StreamingProvider:
    """`answer` gives the pieces of the next answers. `sent_bytes` are those that the kernel took, of all answers."""

    def __init__(self, answer: Callable[[], Iterable[bytes]], content_type: str = "text/event-stream") -> None:
        self.answer = answer
        self.content_type = content_type
        self.sent_bytes = 0
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._server = await asyncio.start_server(self._serve, sock=listening)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._request(reader):
                await self._send(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    @staticmethod
    async def _request(reader: asyncio.StreamReader) -> bool:
        length = 0
        while line := await reader.readline():
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
            if line == b"\r\n":
                await reader.readexactly(length)
                return True
        return False

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # `drain` returns when the kernel has it all
        writer.write(HEAD % self.content_type.encode())
        for piece in self.answer():
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            self.sent_bytes += len(piece)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def paused(self, quiet_s: float = 0.3) -> int:
        """`sent_bytes`, once they have been the same for `quiet_s`."""
        before = -1
        async with asyncio.timeout(30):
            while before != self.sent_bytes:
                before = self.sent_bytes
                await asyncio.sleep(quiet_s)
        return self.sent_bytes


def _small_socket(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    return made


def slow_session() -> aiohttp.ClientSession:
    """A client whose answers stay in the kernel, and with the sender, until they are read."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, socket_factory=_small_socket),
        auto_decompress=False,
        read_bufsize=SOCKET_BUFFER_BYTES,
        timeout=aiohttp.ClientTimeout(total=300),
    )
