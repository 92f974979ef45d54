"""The installation's key in error answers: masked wherever a client could read it, and nothing else touched."""

from __future__ import annotations

import gzip

import pytest
from test_upstream_client import TIMEOUTS, Server, client

from gateway.errors import ObolError
from gateway.proxy.masking import BODY_MAX_BYTES, DECODED_MAX_BYTES
from gateway.proxy.upstream import Request, Upstream

KEY = b"sk-canary-0123456789"
STARS = b"*" * len(KEY)


def answer(body: bytes, *headers: bytes, status: bytes = b"401 Unauthorized", length: int | None = None) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % (len(body) if length is None else length), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def fetch(upstream: Upstream, server: Server, *, secret: bytes = KEY, method: str = "POST"):
    response = await upstream.send(server.origin, Request(method=method, path="/", headers=[], secret=secret), TIMEOUTS)
    try:
        body = b""
        while piece := await response.read():
            body += piece
        assert response.ended
        return response, body
    finally:
        response.close()


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (answer(b"bad key " + KEY), b"bad key " + STARS),
        (answer(KEY * 3), STARS * 3),
        (answer(b""), b""),
        (answer(b"nothing"), b"nothing"),
        (answer(b"x", b"Content-Encoding: identity"), b"x"),
        (
            b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n%b\r\nb\r\n%b\r\n0\r\n\r\n"
            % (KEY[:9], KEY[9:]),
            STARS,
        ),
        (answer(gzip.compress(KEY), b"Content-Encoding: gzip"), STARS),
        (answer(gzip.compress(KEY[:5]) + gzip.compress(KEY[5:]), b"Content-Encoding: x-gzip"), STARS),
        (answer(gzip.compress(gzip.compress(KEY)), b"Content-Encoding: gzip, gzip"), STARS),
        (answer(gzip.compress(gzip.compress(KEY)), b"Content-Encoding: gzip", b"content-encoding: gzip"), STARS),
    ],
)
async def test_the_key_is_masked_and_the_connection_is_kept(sent, read):
    async with Server(sent, sent) as server, client() as upstream:
        for _ in range(2):
            response, body = await fetch(upstream, server)
            assert body == read
            lengths = [value for name, value in response.headers if name.lower() == b"content-length"]
            assert lengths in ([], [b"%d" % len(read)])
        assert (server.connections, upstream.reused_total) == (1, 1)


async def test_the_key_is_masked_in_the_head_too():
    sent = answer(b"", b"WWW-Authenticate: Bearer " + KEY, status=b"401 Not " + KEY)
    async with Server(sent) as server, client() as upstream:
        response, _ = await fetch(upstream, server)
    assert response.reason == "Not " + STARS.decode()
    assert (b"WWW-Authenticate", b"Bearer " + STARS) in response.headers


async def test_an_answer_to_head_has_no_body():
    async with Server(answer(b"", length=100)) as server, client() as upstream:
        response, body = await fetch(upstream, server, method="HEAD")
    assert (body, response.header(b"content-length")) == (b"", "100")


@pytest.mark.parametrize("status", [b"200 OK", b"299 Odd"])
async def test_an_answer_that_is_no_error_is_not_looked_at(status):
    sent = answer(KEY, status=status)
    async with Server(sent) as server, client() as upstream:
        assert (await fetch(upstream, server))[1] == KEY


@pytest.mark.parametrize("secret", [b"", b"canary"])
async def test_a_short_key_is_left_alone_it_would_be_found_in_ordinary_words(secret):
    async with Server(answer(KEY)) as server, client() as upstream:
        assert (await fetch(upstream, server, secret=secret))[1] == KEY


@pytest.mark.parametrize(
    "sent",
    [
        answer(b"x" * (BODY_MAX_BYTES + 1)),
        answer(gzip.compress(b"x" * (DECODED_MAX_BYTES + 1)), b"Content-Encoding: gzip"),
        answer(b"not gzip " + KEY, b"Content-Encoding: gzip"),
        answer(KEY[::-1], b"Content-Encoding: rot"),
    ],
    ids=["too large", "a bomb", "not what it says", "an encoding nobody asked for"],
)
async def test_what_cannot_be_looked_into_is_not_passed_on(sent):
    async with Server(sent) as server, client() as upstream:
        with pytest.raises(ObolError, match="the provider answered 401 with") as caught:
            await fetch(upstream, server)
        assert caught.value.code == "upstream_failed"
        assert upstream.open_connections == 0 or not upstream._idle


async def test_an_error_that_is_cut_short_is_masked_as_far_as_it_came():
    async with Server(answer(b"key " + KEY, length=100), hold_open=False) as server, client() as upstream:
        request = Request(method="POST", path="/", headers=[], secret=KEY)
        response = await upstream.send(server.origin, request, TIMEOUTS)
        assert await response.read() == b"key " + STARS
        with pytest.raises(ObolError, match="closed the connection"):
            await response.read()
        response.close()
