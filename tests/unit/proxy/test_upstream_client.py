"""The client towards providers, against servers that say odd things."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from gateway.errors import ObolError
from gateway.proxy.http_client import BUFFER_HIGH_BYTES, HttpConnection, Timeouts
from gateway.proxy.resolver import Resolver
from gateway.proxy.upstream import Origin, Request, Upstream, tls_context

TIMEOUTS = Timeouts(first_byte_s=5, idle_s=5, total_s=10)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request, read up to its blank line, with the next of `answers`; None closes the connection."""

    def __init__(self, *answers: bytes | None, hold_open: bool = True) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.seen: list[bytes] = []
        self.hold_open = hold_open

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.origin = Origin(
            "http", "127.0.0.1", self._server.sockets[0].getsockname()[1], "api.example.com", "stand_in"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.seen.append(head)
                answer = self.answers.pop(0) if self.answers else None
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
                if not self.hold_open:
                    break
        writer.close()


@contextlib.asynccontextmanager
async def client(**changes: float):
    parts = {"resolver": Resolver(cache_s=30), "tls": tls_context()}
    upstream = Upstream(**{"connections_max": 8, "connect_timeout_s": 2, "idle_s": 30, **parts, **changes})
    running = asyncio.ensure_future(upstream.run())
    try:
        yield upstream
    finally:
        running.cancel()
        await upstream.close()


async def fetch(upstream: Upstream, origin: Origin, method: str = "GET", timeouts: Timeouts = TIMEOUTS):
    response = await upstream.send(origin, Request(method=method, path="/x", headers=[]), timeouts)
    try:
        body = b""
        while piece := await response.read():
            body += piece
        return response, body
    finally:
        response.close()


async def test_a_connection_is_reused_once_its_answer_was_read():
    async with Server(OK, OK) as server, client() as upstream:
        for _ in range(2):
            _, body = await fetch(upstream, server.origin)
            assert body == b"ok"
        assert (server.connections, upstream.opened_total, upstream.reused_total) == (1, 1, 1)
        assert server.seen[0].startswith(b"GET /x HTTP/1.1\r\nHost: api.example.com\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", id="close"),
        pytest.param(OK + OK.replace(b"ok", b"no"), id="a second answer in the same bytes"),
        pytest.param(OK + b"rubbish", id="rubbish behind the answer"),
    ],
)
async def test_a_dirty_connection_is_not_reused(answer):
    async with Server(answer, OK) as server, client() as upstream:
        _, body = await fetch(upstream, server.origin)
        assert body == b"ok"
        server.answers = [OK]
        _, body = await fetch(upstream, server.origin)
        assert (body, server.connections) == (b"ok", 2)


async def test_bytes_that_come_between_exchanges_close_the_connection():
    async with Server(OK) as server, client() as upstream:
        await fetch(upstream, server.origin)
        (connection,) = upstream._open
        connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.sleep(0.05)
        assert not upstream._open
        server.answers = [OK]
        await fetch(upstream, server.origin)
        assert server.connections == 2


async def test_interim_answers_are_not_the_answer():
    early = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with Server(early + OK) as server, client() as upstream:
        response, body = await fetch(upstream, server.origin)
        assert (response.status, response.reason, body) == (200, "OK", b"ok")
        assert response.headers == [(b"Content-Length", b"2")]


async def test_a_body_that_ends_with_the_connection():
    async with Server(b"HTTP/1.1 200 OK\r\n\r\nall of it", hold_open=False) as server, client() as upstream:
        _, body = await fetch(upstream, server.origin)
        assert body == b"all of it"


@pytest.mark.parametrize(
    "method,head",
    [("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"), ("GET", b"HTTP/1.1 204 No Content\r\n\r\n")],
)
async def test_answers_without_a_body(method, head):
    async with Server(head) as server, client() as upstream:
        response, body = await fetch(upstream, server.origin, method)
        assert body == b""
        assert response.status in (200, 204)


@pytest.mark.parametrize(
    ("answer", "status_seen"),
    [
        pytest.param(None, False, id="closed before the head"),
        pytest.param(b"rubbish\r\n\r\n", False, id="not HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive", True, id="short body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfive\r\n", True, id="no last chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n", False, id="endless head"),
    ],
)
async def test_a_broken_answer_is_upstream_failed_and_nothing_is_sent_twice(answer, status_seen):
    async with Server(answer, hold_open=False) as server, client() as upstream:
        with pytest.raises(ObolError) as caught:
            await fetch(upstream, server.origin)
        assert caught.value.code == "upstream_failed"
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("answer", "timeouts"),
    [
        pytest.param(b"", Timeouts(0.2, 5, 10), id="first byte"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive", Timeouts(5, 0.2, 10), id="idle"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive", Timeouts(5, 5, 0.3), id="total"),
    ],
)
async def test_a_slow_provider_is_a_timeout(answer, timeouts):
    async with Server(answer) as server, client() as upstream:
        with pytest.raises(ObolError) as caught:
            await asyncio.wait_for(fetch(upstream, server.origin, timeouts=timeouts), 5)
        assert caught.value.code == "upstream_timeout"


async def test_a_connection_that_ends_while_it_is_made_is_not_waited_on(monkeypatch):
    async with Server() as server, client() as upstream:

        async def over_already(_: Origin) -> HttpConnection:
            return HttpConnection(lambda _: None)

        monkeypatch.setattr(upstream, "_opened", over_already)
        with pytest.raises(ObolError, match="closed the connection at once"):
            await asyncio.wait_for(fetch(upstream, server.origin), 2)
        assert upstream.open_connections == 0


async def test_an_unreachable_provider_and_a_full_client():
    async with client() as upstream:
        with pytest.raises(ObolError) as caught:
            await fetch(upstream, Origin("http", "127.0.0.1", 1, "x", "stand_in"))
        assert caught.value.code == "upstream_failed"
    async with Server(OK) as server, client(connections_max=0) as upstream:
        with pytest.raises(ObolError) as caught:
            await fetch(upstream, server.origin)
        assert (caught.value.code, server.connections) == ("too_many_requests", 0)


async def test_an_idle_connection_goes_with_time():
    async with Server(OK) as server, client(idle_s=0.1) as upstream:
        await fetch(upstream, server.origin)
        assert upstream.open_connections == 1
        await asyncio.sleep(0.8)
        assert upstream.open_connections == 0


async def test_a_reader_that_does_not_read_pauses_the_provider():
    """Check 24 at the socket: what is buffered here stays near BUFFER_HIGH_BYTES whatever the provider sends."""
    size = 20_000_000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    async with Server(head + b"x" * size) as server, client() as upstream:
        response = await upstream.send(server.origin, Request(method="GET", path="/", headers=[]), TIMEOUTS)
        await asyncio.sleep(0.3)
        buffered = response._connection._body_bytes
        assert BUFFER_HIGH_BYTES < buffered < BUFFER_HIGH_BYTES + 1_000_000
        total = 0
        while piece := await response.read():
            total += len(piece)
        assert total == size
        response.close()


@pytest.mark.parametrize("stop_after", [1, 3, 1_000])
async def test_pump_hands_over_what_comes_and_read_gives_the_rest(stop_after):
    chunks = [b"%d;" % number * 50 for number in range(200)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    async with Server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body) as server, client() as upstream:
        response = await upstream.send(server.origin, Request(method="GET", path="/", headers=[]), TIMEOUTS)
        pumped: list[bytes] = []
        sink: Callable[[bytes], bool] = lambda piece: not pumped.append(piece) and len(pumped) < stop_after  # noqa: E731
        received = b""
        while piece := await response.read():
            received += piece
            if not response.ended:
                await response.pump(sink)
                received += b"".join(pumped)
                pumped.clear()
        assert received == b"".join(chunks)
        response.close()


async def test_an_upload_in_pieces_is_chunked_or_has_its_length():
    async def pieces():
        for _ in range(3):
            yield b"abc"

    async with Server(OK, OK) as server, client() as upstream:
        request = Request(method="POST", path="/", headers=[], body=pieces())
        response = await upstream.send(server.origin, request, TIMEOUTS)
        assert await response.read() == b"ok"
        response.close()
        assert b"Transfer-Encoding: chunked" in server.seen[0]
    async with Server(OK) as server, client() as upstream:
        request = Request(method="POST", path="/", headers=[], body=pieces(), content_length=9)
        response = await upstream.send(server.origin, request, TIMEOUTS)
        assert await response.read() == b"ok"
        response.close()
        assert b"Content-Length: 9" in server.seen[0]
