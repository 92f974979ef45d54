"""Request smuggling and abuse, by raw sockets: refused in JSON, closed, nothing sent upstream, no hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from hashlib import sha256

import pytest
from attacked import BODY, CHUNKED, CHUNKED_BODY, LENGTH, Attacked, Place, attacked_fixture, checked, quiet, refused  # noqa: F401
from raw_http import raw_client, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

Bytes = Callable[[Place], bytes | list[bytes]]

MALFORMED: dict[str, Bytes] = {
    # lengths
    "two lengths that differ": lambda to: to.post(LENGTH, "Content-Length: 5"),
    "two lengths that agree": lambda to: to.post(LENGTH, LENGTH),
    "a list of lengths": lambda to: to.post(f"{LENGTH}, {len(BODY)}"),
    "a negative length": lambda to: to.post("Content-Length: -5"),
    "a length with a plus": lambda to: to.post(f"Content-Length: +{len(BODY)}"),
    "a hexadecimal length": lambda to: to.post(f"Content-Length: {len(BODY):#x}"),
    "a length with an underscore": lambda to: to.post("Content-Length: 1_0"),
    "an empty length": lambda to: to.post("Content-Length: "),
    "a length and a space within": lambda to: to.post("Content-Length: 1 0"),
    "a length beyond 64 bits": lambda to: to.post("Content-Length: 18446744073709551616"),
    "a length of 2^64 - 1": lambda to: to.post("Content-Length: 18446744073709551615"),
    # transfer codings
    "length, then chunked": lambda to: to.post(LENGTH, CHUNKED),
    "chunked, then length": lambda to: to.post(CHUNKED, LENGTH, body=CHUNKED_BODY),
    "empty coding and length": lambda to: to.post("Transfer-Encoding: ", LENGTH),
    "chunked twice": lambda to: to.post(CHUNKED, CHUNKED, body=CHUNKED_BODY),
    "chunked twice in one": lambda to: to.post(f"{CHUNKED}, chunked", body=CHUNKED_BODY),
    "chunked, identity": lambda to: to.post(f"{CHUNKED}, identity", body=CHUNKED_BODY),
    "identity, chunked": lambda to: to.post("Transfer-Encoding: identity, chunked", body=CHUNKED_BODY),
    "gzip, chunked": lambda to: to.post("Transfer-Encoding: gzip, chunked", body=CHUNKED_BODY),
    "a comma before chunked": lambda to: to.post("Transfer-Encoding: ,chunked", body=CHUNKED_BODY),
    "identity": lambda to: to.post("Transfer-Encoding: identity", LENGTH),
    "xchunked": lambda to: to.post("Transfer-Encoding: xchunked", body=CHUNKED_BODY),
    "chunked with a parameter": lambda to: to.post("Transfer-Encoding: chunked;q=1", body=CHUNKED_BODY),
    "chunked in quotes": lambda to: to.post('Transfer-Encoding: "chunked"', body=CHUNKED_BODY),
    "chunked and a tab": lambda to: to.post("Transfer-Encoding: chunked\t", body=CHUNKED_BODY),
    "a vertical tab and chunked": lambda to: to.post("Transfer-Encoding: \x0bchunked", body=CHUNKED_BODY),
    "chunked on a line of its own": lambda to: to.post("Transfer-Encoding:\r\n chunked", body=CHUNKED_BODY),
    "a space before the colon of a coding": lambda to: to.post("Transfer-Encoding : chunked", body=CHUNKED_BODY),
    "the second coding in capitals": lambda to: to.post("TRANSFER-ENCODING: identity", CHUNKED, body=CHUNKED_BODY),
    "chunked in HTTP/1.0": lambda to: to.post(CHUNKED, body=CHUNKED_BODY, version="HTTP/1.0"),
    # chunks
    "a chunk size that is no number": lambda to: to.post(CHUNKED, body=b"xyz\r\n\r\n"),
    "a chunk size with 0x": lambda to: to.post(CHUNKED, body=b"0x2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size with a sign": lambda to: to.post(CHUNKED, body=b"+2\r\n{}\r\n0\r\n\r\n"),
    "a negative chunk size": lambda to: to.post(CHUNKED, body=b"-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size and a space": lambda to: to.post(CHUNKED, body=b"2 \r\n{}\r\n0\r\n\r\n"),
    "a chunk size beyond 64 bits": lambda to: to.post(CHUNKED, body=b"10000000000000002\r\n{}\r\n0\r\n\r\n"),
    "no chunk size": lambda to: to.post(CHUNKED, body=b"\r\n{}\r\n0\r\n\r\n"),
    "a chunk longer than its size": lambda to: to.post(CHUNKED, body=b"2\r\n{}}\r\n0\r\n\r\n"),
    "a bare LF behind a chunk size": lambda to: to.post(CHUNKED, body=b"2\n{}\r\n0\r\n\r\n"),
    "a bare LF behind a chunk": lambda to: to.post(CHUNKED, body=b"2\r\n{}\n0\r\n\r\n"),
    "a bare CR in an extension": lambda to: to.post(CHUNKED, body=b"2;a\rb\r\n{}\r\n0\r\n\r\n"),
    "a length among the trailers": lambda to: to.post(CHUNKED, body=b"2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n"),
    # headers
    "a folded header": lambda to: to.get("X-A: 1\r\n 2"),
    "a folded first header": lambda to: request(f"GET {to.path} HTTP/1.1", [" X-A: 1", *to.headers]),
    "a bare LF between headers": lambda to: to.get("X-A: 1\nX-B: 2"),
    "a bare CR in a header": lambda to: to.get("X-A: 1\rX-B: 2"),
    "a bare LF behind the request line": lambda to: to.get().replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n", 1),
    "a bare LF at the end of the head": lambda to: to.get()[:-2] + b"\n",
    "a CR too many": lambda to: to.get("X-A: 1\r"),
    "a space before the colon": lambda to: to.get("X-A : 1"),
    "no colon": lambda to: to.get("X-A"),
    "no name": lambda to: to.get(": 1"),
    "NUL in a header": lambda to: to.get("X-A: a\x00b"),
    "NUL in a name": lambda to: to.get("X\x00A: b"),
    "a control character in a header": lambda to: to.get("X-A: a\x01b"),
    "escape in a header": lambda to: to.get("X-A: a\x1bb"),
    "DEL in a header": lambda to: to.get("X-A: a\x7fb"),
    "a name that is no token": lambda to: to.get("X(A): b"),
    "a name beyond ASCII": lambda to: to.get("X-\xe9: b"),
    "two hosts": lambda to: to.get("Host: other.test"),
    "no host": lambda to: request(f"GET {to.path} HTTP/1.1", to.headers[1:]),
    "a host that is none": lambda to: request(f"GET {to.path} HTTP/1.1", ["Host: a@b, c", *to.headers[1:]]),
    # request lines
    "an absolute target": lambda to: to.line("GET http://g.testPATH HTTP/1.1"),
    "an absolute target elsewhere": lambda to: to.line("GET https://evil.test/ HTTP/1.1"),
    "an authority": lambda to: to.line("CONNECT api.openai.com:443 HTTP/1.1"),
    "an authority to GET": lambda to: to.line("GET api.openai.com:443 HTTP/1.1"),
    "an asterisk": lambda to: to.line("OPTIONS * HTTP/1.1"),
    "a fragment": lambda to: to.line("GET PATH#x HTTP/1.1"),
    "NUL in the target": lambda to: to.line("GET PATH\x00 HTTP/1.1"),
    "a tab in the target": lambda to: to.line("GET PATH\tx HTTP/1.1"),
    "a control character in the target": lambda to: to.line("GET PATH\x01 HTTP/1.1"),
    "a byte beyond ASCII in the target": lambda to: to.line("GET PATH\xff HTTP/1.1"),
    "a space in the target": lambda to: to.line("GET PATH x HTTP/1.1"),
    "tabs for spaces": lambda to: to.line("GET\tPATH\tHTTP/1.1"),
    "a space before the method": lambda to: to.line(" GET PATH HTTP/1.1"),
    "a method in lower case": lambda to: to.line("get PATH HTTP/1.1"),
    "an unknown method": lambda to: to.line("FOO PATH HTTP/1.1"),
    "HTTP/0.9": lambda to: f"GET {to.path}\r\n\r\n".encode(),
    "HTTP/0.9 by name": lambda to: to.line("GET PATH HTTP/0.9"),
    "HTTP/1.2": lambda to: to.line("GET PATH HTTP/1.2"),
    "HTTP/2.0": lambda to: to.line("GET PATH HTTP/2.0"),
    "HTTP/01.1": lambda to: to.line("GET PATH HTTP/01.1"),
    "the version in lower case": lambda to: to.line("GET PATH http/1.1"),
    "HTTP/2 without notice": lambda to: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": lambda to: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "PROXY protocol": lambda to: b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + to.get(),
    "rubbish": lambda to: b"\x00\x01\x02\x03\r\n\r\n",
    # other protocols
    "an upgrade to WebSocket": lambda to: to.get(
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ),
    "an upgrade to anything else": lambda to: to.get("Upgrade: TLS/1.0", "Connection: Upgrade"),
    # pipelined in one write: the request before it is not served either
    "rubbish behind a request": lambda to: to.post(LENGTH) + b"RUBBISH\r\n\r\n",
    "a body longer than its length": lambda to: to.post(f"Content-Length: {len(BODY) - 5}"),
    "something behind Connection: close": lambda to: to.post(LENGTH, "Connection: close") + to.get(),
}

OVERSIZED: dict[str, tuple[int, str, Bytes]] = {
    "a request line": (431, "headers_too_large", lambda to: to.line(f"GET PATH{'x' * 70_000} HTTP/1.1")),
    "a header": (431, "headers_too_large", lambda to: to.get("X-A: " + "x" * 70_000)),
    "a name": (431, "headers_too_large", lambda to: to.get("X" * 70_000 + ": a")),
    "headers together": (431, "headers_too_large", lambda to: to.get(*[f"X-{n}: {'x' * 1_000}" for n in range(70)])),
    "headers that come apart": (
        431,
        "headers_too_large",
        lambda to: [to.get()[:-2], *[f"X-{n}: {'x' * 20_000}\r\n".encode() for n in range(4)]],
    ),
    "too many headers": (431, "headers_too_large", lambda to: to.get(*[f"X-{n}: x" for n in range(130)])),
    "empty lines": (431, "headers_too_large", lambda to: [b"\r\n" * 20_000] * 2),
    "another expectation": (417, "expectation_failed", lambda to: to.post(LENGTH, "Expect: 200-maybe")),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_two_readers_could_read_differently_is_refused_everywhere(attacked: Attacked, name: str) -> None:
    attacked.gateway.provider.clear()
    attacked.raw.clear()
    cases = [refused(attacked, to, MALFORMED[name](to), 400, "invalid_request") for to in attacked.places()]
    await asyncio.gather(*cases)
    assert (attacked.gateway.provider.request_count, attacked.raw.connections) == (0, 0)
    assert await attacked.held() == (0, 0)


@pytest.mark.parametrize("name", OVERSIZED)
async def test_what_is_too_large_or_expects_too_much_is_refused_everywhere(attacked: Attacked, name: str) -> None:
    status, code, sent = OVERSIZED[name]
    attacked.gateway.provider.clear()
    attacked.raw.clear()
    await asyncio.gather(*(refused(attacked, to, sent(to), status, code) for to in attacked.places()))
    assert (attacked.gateway.provider.request_count, attacked.raw.connections) == (0, 0)
    assert await attacked.held() == (0, 0)


# What is unusual and yet well-formed is served.

SERVED: dict[str, Bytes] = {
    "a length": lambda to: to.post(LENGTH),
    "a length with zeros before it": lambda to: to.post(f"Content-Length: 00{len(BODY)}"),
    "a length and a tab": lambda to: to.post(LENGTH + "\t"),
    "chunked": lambda to: to.post(CHUNKED, body=CHUNKED_BODY),
    "chunked in capitals": lambda to: to.post("TRANSFER-ENCODING:\tCHUNKED", body=CHUNKED_BODY),
    "chunks of one byte": lambda to: to.post(
        CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    ),
    "a chunk extension": lambda to: to.post(CHUNKED, body=CHUNKED_BODY.replace(b"\r\n", b";a=b\r\n", 1)),
    "empty lines before it": lambda to: b"\r\n\r\n" + to.post(LENGTH),
    "HTTP/1.0": lambda to: to.post(LENGTH, version="HTTP/1.0"),
    "the body in pieces": lambda to: [to.post(LENGTH, body=b""), BODY[:10], BODY[10:]],
    "the head in pieces": lambda to: [to.post(LENGTH)[:30], to.post(LENGTH)[30:]],
    "the end of chunks in pieces": lambda to: [to.post(CHUNKED, body=CHUNKED_BODY)[:-3], b"\n", b"\r\n"],
    "an offer of HTTP/2": lambda to: to.post(LENGTH, "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings"),
    "an upgrade that is not asked for": lambda to: to.post(LENGTH, "Upgrade: websocket"),
    "UTF-8 in a header": lambda to: to.post(LENGTH, "X-Name: Zoë".encode()),
}


@pytest.mark.parametrize("name", SERVED)
async def test_what_is_unusual_and_well_formed_is_served(attacked: Attacked, name: str) -> None:
    attacked.gateway.provider.clear()
    sent = SERVED[name](attacked.place("chat"))
    async with raw_client(attacked.gateway.url) as client:
        await client.send(*([sent] if isinstance(sent, bytes) else sent))
        answer = await client.answer()
    assert answer is not None
    assert (answer.status, answer.json["object"]) == (200, "chat.completion")
    (seen,) = attacked.gateway.provider.requests
    assert seen.json == json.loads(BODY)
    assert not {"upgrade", "transfer-encoding", "connection", "transfer_encoding"} & {
        name.lower() for name, _ in seen.headers
    }


async def test_framing_in_disguise_does_not_reach_the_provider(attacked: Attacked) -> None:
    """Where it runs behind a server that reads underscores as dashes."""
    attacked.gateway.provider.clear()
    sent = attacked.place("chat").post(LENGTH, "Transfer_Encoding: chunked", "Content_Length: 5")
    async with raw_client(attacked.gateway.url) as client:
        await client.send(sent)
        answer = await client.answer()
    assert answer is not None and answer.status == 200
    (seen,) = attacked.gateway.provider.requests
    assert not {"transfer_encoding", "content_length"} & {name.lower() for name, _ in seen.headers}


# What ends well keeps the connection; what does not, ends it.


async def test_a_connection_goes_on_behind_a_chunked_body_that_ends_plainly(attacked: Attacked) -> None:
    chunked = attacked.place("chat").post(CHUNKED, body=CHUNKED_BODY)
    async with raw_client(attacked.gateway.url) as client:
        for cut in (len(chunked), len(chunked) - 3, 60):
            await client.send(*filter(None, (chunked[:cut], chunked[cut:])))
            answer = await client.answer()
            assert answer is not None and answer.status == 200


@pytest.mark.parametrize("split", [False, True])
async def test_trailers_do_not_become_headers_of_the_next_request(attacked: Attacked, split: bool) -> None:
    attacked.gateway.provider.clear()
    place = attacked.place("chat")
    trailers = CHUNKED_BODY[:-2] + b"Authorization: Bearer stolen\r\nX-Evil: 1\r\n\r\n"
    first, second = place.post(CHUNKED, body=trailers), place.post(LENGTH)
    async with raw_client(attacked.gateway.url) as client:
        await client.send(*((first, second) if split else (first + second,)))
        answer = await client.answer()
        assert answer is not None and answer.status == 200
        assert await client.ended()
    assert attacked.gateway.provider.request_count == 1
    assert attacked.gateway.provider.requests[0].header("x-evil") is None


async def test_what_stands_behind_an_offer_to_upgrade_is_not_served(attacked: Attacked) -> None:
    attacked.gateway.provider.clear()
    place = attacked.place("chat")
    offer = place.post(LENGTH, "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings")
    for blocks in ((offer + place.post(LENGTH),), (offer[:-9], offer[-9:] + place.post(LENGTH), place.post(LENGTH))):
        async with raw_client(attacked.gateway.url) as client:
            await client.send(*blocks)
            answer = await client.answer()
            assert answer is not None and answer.status == 200
            assert answer.headers["connection"] == "close"
            assert await client.ended()
    assert attacked.gateway.provider.request_count == 2


async def test_what_stands_behind_a_websocket_that_is_refused_is_not_served(attacked: Attacked) -> None:
    attacked.gateway.provider.clear()
    place = attacked.place("chat")
    asked = place.get("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    for blocks in ((asked + place.post(LENGTH),), (asked, place.post(LENGTH)), (asked[:-9], asked[-9:] + b"RUBBISH")):
        async with raw_client(attacked.gateway.url) as client:
            await client.send(*blocks)
            answer = await client.answer()
            assert answer is not None
            checked(answer, 400, "invalid_request")
            assert await client.ended()
    assert attacked.gateway.provider.request_count == 0


async def test_rubbish_behind_a_call_under_way_ends_the_connection_after_its_answer(attacked: Attacked) -> None:
    attacked.gateway.provider.clear()
    async with raw_client(attacked.gateway.url) as client:
        await client.send(attacked.place("chat").post(LENGTH), b"RUBBISH\r\n\r\n", attacked.place("chat").post(LENGTH))
        answer = await client.answer()
        assert answer is not None and answer.status == 200
        answer = await client.answer()
        assert answer is not None
        checked(answer, 400, "invalid_request")
        assert await client.ended()
    assert attacked.gateway.provider.request_count == 1


@pytest.mark.parametrize("name", ["chat", "rest"])
async def test_chunk_extensions_without_end_are_refused(attacked: Attacked, name: str) -> None:
    attacked.gateway.provider.clear()
    sent = attacked.place(name).post(CHUNKED, body=b"2;" + b"a" * 700_000)
    await refused(attacked, attacked.place(name), sent, 400, "invalid_request")
    assert attacked.gateway.provider.request_count == 0


async def test_chunks_of_one_byte_are_no_abuse(attacked: Attacked) -> None:
    """More of them in one read than the parser gives on at once."""
    attacked.gateway.provider.clear()
    body = b" " * 60_000 + BODY
    sent = attacked.place("chat").post(CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
    async with raw_client(attacked.gateway.url) as client:
        await client.send(sent)
        answer = await client.answer()
        assert answer is not None and answer.status == 200
    assert attacked.gateway.provider.requests[0].body_sha256 == sha256(body).hexdigest()


@pytest.mark.parametrize("name", ["chat", "rest"])
async def test_a_body_that_breaks_off_its_framing_later_is_refused(attacked: Attacked, name: str) -> None:
    attacked.gateway.provider.clear()
    head = attacked.place(name).post(CHUNKED, body=b'5\r\n{"a":\r\n')
    await refused(attacked, attacked.place(name), [head, b"zz\r\n", b"more"], 400, "invalid_request")
    assert attacked.gateway.provider.request_count == 0
    assert await attacked.held() == (0, 0)


async def test_a_body_passed_on_as_it_comes_has_no_end_upstream_when_its_framing_breaks(attacked: Attacked) -> None:
    attacked.raw.clear()
    head = attacked.place("raw").post(CHUNKED, body=b"5\r\nhello\r\n")
    await refused(attacked, attacked.place("raw"), [head, b"-1\r\n"], 400, "invalid_request")
    await quiet(attacked)
    assert b"\r\n\r\n" in attacked.raw.received
    assert not attacked.raw.received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "path",
    [
        "ch%2561t/completions",
        "chat%20/completions",
        "%20chat/completions",
        "chat%3F/completions",
        "chat%5C/completions",
    ],
)
async def test_an_endpoint_in_disguise_is_not_metered_as_another(attacked: Attacked, path: str) -> None:
    attacked.gateway.provider.clear()
    place = attacked.place("chat")
    place.path = f"/v1/forward?u=https://api.openai.com/v1/{path}"
    async with raw_client(attacked.gateway.url) as client:
        await client.send(place.post(LENGTH))
        answer = await client.answer()
        assert answer is not None
        checked(answer, 400, "forward_endpoint_not_supported")
    assert attacked.gateway.provider.request_count == 0
