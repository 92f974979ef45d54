"""The strict parser finds the same wherever the network cuts."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser

from gateway.proxy.strict import Refused, StrictParser

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: g.test\r\nAuthorization: Bearer good\r\n"
LENGTH = HEAD + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\n"
GET = b"GET /y HTTP/1.1\r\nHost: g.test\r\n\r\n"

# The stream; what is served of it; whether the connection may be used on.
STREAMS = {
    "one": (LENGTH, ["POST hello"], True),
    "three": (LENGTH + GET + LENGTH, ["POST hello", "GET ", "POST hello"], True),
    "chunked": (CHUNKED + b"\r\n", ["POST hello"], True),
    "chunked, trailers": (CHUNKED + b"X-A: 1\r\nAuthorization: Bearer bad\r\n\r\n", ["POST hello"], False),
    "chunked, trailers, another": (CHUNKED + b"X-A: 0\r\n\r\n" + GET, ["POST hello"], False),
    "h2c": (HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\nhello", ["POST hello"], False),
    "websocket": (GET[:-2] + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + GET, ["GET "], False),
    "h2c, another": (GET[:-2] + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + GET, ["GET "], False),
}


class Connection:
    """What aiohttp's connection does with its parser, as far as these tests go."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        protocol = BaseProtocol(loop)
        parser = HttpRequestParser(protocol, loop, 2**16, max_headers=10, auto_decompress=False, max_msg_queue_size=32)
        protocol._parser = parser
        self.strict = StrictParser(parser, head_max_bytes=4_000, headers_max=10)
        self.parsed = []

    def feed(self, data: bytes) -> None:
        self.parsed += self.strict.feed_data(data)[0]

    @property
    def served(self) -> list[str]:
        whole = [(message, payload) for message, payload in self.parsed if payload.is_eof()]
        return [f"{message.method} {payload.read_nowait().decode()}" for message, payload in whole]


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_read_alike_wherever_it_is_cut(loop: asyncio.AbstractEventLoop, name: str) -> None:
    stream, served, goes_on = STREAMS[name]
    for cut in range(len(stream) + 1):
        connection = Connection(loop)
        connection.feed(stream[:cut])
        connection.feed(stream[cut:])
        assert (connection.served, connection.strict.receiving) == (served, False), cut
        connection.feed(GET)
        assert (len(connection.parsed) == len(served) + 1) == goes_on or not served, cut


@pytest.mark.parametrize("name", [name for name, (_, _, goes_on) in STREAMS.items() if goes_on])
def test_a_stream_is_read_alike_byte_by_byte(loop: asyncio.AbstractEventLoop, name: str) -> None:
    stream, served, _ = STREAMS[name]
    connection = Connection(loop)
    for number in range(len(stream)):
        connection.feed(stream[number : number + 1])
    assert connection.served == served


@pytest.mark.parametrize(
    "stream",
    [
        LENGTH.replace(b"Content-Length: 5", b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
        GET.replace(b"/y", b"http://g.test/y"),
        GET[:-2] + b"X-A: 1\r\n" * 11 + b"\r\n",
        GET[:-2] + b"X-A: " + b"x" * 4_000 + b"\r\n\r\n",
        CHUNKED.replace(b"chunked", b"gzip, chunked") + b"\r\n",
        HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\n",
        GET[:-2] + b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_what_is_refused_is_refused_wherever_it_is_cut(loop: asyncio.AbstractEventLoop, stream: bytes) -> None:
    for cut in range(0, len(stream) + 1, 1 + len(stream) // 200):
        connection = Connection(loop)
        with pytest.raises(Refused):
            connection.feed(stream[:cut])
            connection.feed(stream[cut:])
        assert connection.parsed == []
        connection.feed(GET)
        assert connection.parsed == []
