"""Servers for the tests of the load client, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from loadtests.provider import Provider
from loadtests.timer_wheel import TimerWheel


@contextlib.asynccontextmanager
async def serving(factory: Callable[[], asyncio.Protocol]) -> AsyncIterator[str]:
    """Yield the origin of a server of `factory` on a port of its own."""
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def provider() -> Callable[[], asyncio.Protocol]:
    wheel = TimerWheel()
    return lambda: Provider(wheel, default_chunks=3, default_delay_ms=1)


class Scripted(asyncio.Protocol):
    """Answers each piece of a request with fixed bytes; `delay_s` gives each answer's delay."""

    def __init__(self, answer: bytes, delay_s: Callable[[], float] = lambda: 0.0, close: bool = False) -> None:
        self._answer, self._delay_s, self._close = answer, delay_s, close

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._delay_s(), self._send)

    def _send(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._answer)
            if self._close:
                self._transport.close()
