"""A provider that sends faster than it is read does not keep the event loop to itself."""

from __future__ import annotations

import asyncio

import pytest

from gateway.proxy.http_client import BUFFER_HIGH_BYTES, BULK_BYTES, HttpConnection, Timeouts

pytestmark = pytest.mark.asyncio
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % 10**9


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def connected() -> tuple[HttpConnection, FakeTransport]:
    connection, transport = HttpConnection(lambda _: None), FakeTransport()
    connection.connection_made(transport)
    connection.begin(Timeouts(10, 10, 10))
    connection.data_received(HEAD)
    return connection, transport


async def test_after_a_large_read_the_loop_goes_round_before_the_next_one() -> None:
    connection, transport = connected()
    taken: list[int] = []
    pumping = asyncio.create_task(connection.pump(lambda piece: taken.append(len(piece)) is None))
    await asyncio.sleep(0)
    connection.data_received(b"x" * (BULK_BYTES + BUFFER_HIGH_BYTES))
    assert taken == [BULK_BYTES + BUFFER_HIGH_BYTES]
    assert not transport.reading, "the loop would read on at once"
    await asyncio.sleep(0)
    assert transport.reading
    connection.data_received(b"x" * 1_000)
    assert transport.reading, "a small read needs no pause"
    pumping.cancel()


async def test_a_reader_that_is_behind_keeps_it_paused() -> None:
    connection, transport = connected()
    connection.data_received(b"x" * (BULK_BYTES + BUFFER_HIGH_BYTES))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not transport.reading
    assert len(await connection.read()) == BULK_BYTES + BUFFER_HIGH_BYTES
    assert transport.reading
