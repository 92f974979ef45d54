"""A provider that writes exactly the pieces it is given, when it is told to, and notices when the gateway hangs up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from gateway.app import _mapped
from gateway.proxy.parts import Parts

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class ScriptedProvider:
    """`script` is what each connection answers: pieces of the body, pauses in seconds, or `HANG` to wait for ever."""

    HANG = -1.0

    def __init__(self) -> None:
        self.script: Sequence[bytes | float]
        self.content_type: bytes
        self.before_head_s: float
        self.requests: int
        self.sent_bytes: int
        self.hung_up: asyncio.Event
        """Set when the gateway closes its connection before the script is over."""
        self.url = ""
        self.play()
        self._tasks: set[asyncio.Task[None]] = set()

    def play(
        self, *script: bytes | float, content_type: bytes = b"text/event-stream", before_head_s: float = 0.0
    ) -> None:
        """From now on. Nothing has happened yet."""
        self.script, self.content_type, self.before_head_s = script, content_type, before_head_s
        self.requests = self.sent_bytes = 0
        self.hung_up = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if lengths:
            await reader.readexactly(int(lengths[0].split(b":")[1]))
        self.requests += 1
        gone = asyncio.create_task(reader.read(1))
        writing = asyncio.create_task(self._write(writer))
        try:
            await asyncio.wait([gone, writing], return_when=asyncio.FIRST_COMPLETED)
            if not writing.done() or writing.exception() is not None:
                self.hung_up.set()
                return False
        finally:
            writing.cancel()
            gone.cancel()
        await asyncio.wait([gone])
        return gone.cancelled()

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.before_head_s)
        writer.write(HEAD % self.content_type)
        for step in self.script:
            if isinstance(step, float):
                await asyncio.sleep(step if step >= 0 else 600)
            else:
                writer.write(b"%x\r\n%b\r\n" % (len(step), step))
                self.sent_bytes += len(step)
                await writer.drain()
        writer.write(END)
        await writer.drain()


@contextlib.asynccontextmanager
async def scripted(parts: Parts) -> AsyncIterator[ScriptedProvider]:
    """It stands behind every origin instead of the fake provider."""
    origins = parts.origins
    async with ScriptedProvider() as provider:
        parts.origins = {origin: _mapped(origin, provider.url) for origin in origins}
        yield provider
    parts.origins = origins
