"""A TCP proxy in front of an engine that can cut a reply in the middle and then let nobody in."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class FlakyProxy:
    """Passes bytes on to `upstream_port` until `cut_next_reply` is called, and again after `heal`."""

    def __init__(self, port: int) -> None:
        self.upstream_port = port
        self._cutting = False
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut_next_reply(self) -> None:
        self._cutting = True

    def heal(self) -> None:
        self._cutting = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cutting:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            from_engine, to_engine = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        except OSError:
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, to_engine, cuts=False))
                group.create_task(self._pass(from_engine, writer, cuts=True))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            to_engine.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cuts: bool) -> None:
        while data := await reader.read(65_536):
            if cuts and self._cutting:
                self.cuts += 1
                writer.write(data[: len(data) // 2])
                raise ConnectionAbortedError("the reply is cut")
            writer.write(data)
            await writer.drain()
        raise ConnectionAbortedError("one side has ended")
