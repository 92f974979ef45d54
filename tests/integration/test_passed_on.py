"""What leaves the gateway and what comes back: redirects, keys that are quoted, headers, methods."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest
from certificates import OK, serving
from outbound import MANAGED, OWN, PROVIDER, authority_fixture, gateway_fixture, outbound_fixture  # noqa: F401
from tests_support import CHAT, chat
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["https://evil.dev/x", "http://169.254.169.254/", f"https://{PROVIDER}/v2", "/v2"])
async def test_redirects_are_the_clients_to_read(outbound, authority, status, location):
    answer = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nContent-Length: 4\r\n\r\ngone".encode()
    async with serving(authority.certified(PROVIDER), answer) as server:
        outbound.serve(PROVIDER, server)
        answer, body, _ = await outbound.call()
    assert (answer.status, answer.reason, answer.headers["location"], body) == (status, "Elsewhere", location, b"gone")
    assert server.data.count(b"POST ") == 1
    assert (outbound.asked, outbound.connects) == ([PROVIDER], [("127.0.0.1", server.port)])


def quoting(request: bytes, status: str, encoding: str) -> bytes:
    """The error of a provider that repeats the key it was given, in its body and in two headers."""
    key = request.lower().split(b"authorization: bearer ")[1].split(b"\r\n")[0]
    body = b'{"error":{"message":"Incorrect API key provided: %b. %b?"}}' % (key, key)
    body = gzip.compress(body) if encoding == "gzip" else body
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Encoding: {encoding}\r\n".encode()
    return head + b"X-Seen: Bearer %b\r\nLocation: /?key=%b\r\nContent-Length: %d\r\n\r\n%b" % (
        key,
        key,
        len(body),
        body,
    )


@pytest.mark.parametrize("status", ["401 Unauthorized", "302 Found", "500 Oops"])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_the_installations_key_is_cut_out_of_errors_that_quote_it(outbound, authority, status, encoding):
    async with serving(authority.certified(PROVIDER), lambda request: quoting(request, status, encoding)) as server:
        outbound.serve(PROVIDER, server)
        answer, body, _ = await outbound.call(headers={"Accept-Encoding": "gzip"})
        assert answer.status == int(status[:3])
        assert MANAGED not in str(answer.raw_headers) and MANAGED.encode() not in body
        stars = "*" * len(MANAGED)
        assert json.loads(body)["error"]["message"] == f"Incorrect API key provided: {stars}. {stars}?"
        assert answer.headers["location"] == f"/?key={stars}"
        again, _, _ = await outbound.call()
    assert (again.status, server.handshakes) == (answer.status, 1)  # the connection was good for another call
    assert server.data.count(MANAGED.encode()) == 2


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_all_other_answers_pass_byte_for_byte(outbound, authority, encoding):
    sent: list[bytes] = []

    def quote(request: bytes) -> bytes:
        sent.append(quoting(request, status, encoding))
        return sent[-1]

    async with serving(authority.certified(PROVIDER), quote) as server:
        outbound.serve(PROVIDER, server)
        # A caller's own key is the caller's; an answer that is no error is not looked at.
        for status, key in (("401 Unauthorized", OWN), ("200 OK", OWN), ("200 OK", None)):
            answer, body, _ = await outbound.call(key=key, headers={"Accept-Encoding": "gzip"})
            assert answer.status == int(status[:3])
            assert sent[-1].endswith(b"\r\n\r\n" + body)


async def test_an_error_without_the_key_passes_as_it_was_compressed(outbound, authority):
    body = gzip.compress(b'{"error":{"message":"no"}}', mtime=1)
    head = b"HTTP/1.1 429 No\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving(authority.certified(PROVIDER), head + body) as server:
        outbound.serve(PROVIDER, server)
        answer, got, _ = await outbound.call(headers={"Accept-Encoding": "gzip"})
    assert (answer.status, answer.headers["content-encoding"], got) == (429, "gzip", body)


@pytest.mark.parametrize("method", ["TRACE", "QUERY"])
async def test_methods_that_give_the_request_back_are_not_passed_on(outbound, method):
    answer, _, customer = await outbound.call("https://api.openai.com/v1/models", method=method)
    assert answer.status in (400, 405)
    await outbound.nothing_happened(customer)


@pytest.mark.parametrize("place", ["header", "query", "path"])
async def test_the_gateways_own_credential_never_reaches_a_provider(outbound, authority, place):
    gateway = outbound.gateway
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    target = {"query": f"{CHAT}?key={credential}", "path": f"https://api.openai.com/v1/files/{credential}"}
    headers = {"Sec-WebSocket-Protocol": f"openai-insecure-api-key.{credential}"} if place == "header" else {}
    method = "GET" if place == "path" else "POST"
    json_body = None if place == "path" else chat()
    async with serving(authority.certified(PROVIDER)) as server:
        outbound.serve(PROVIDER, server)
        async with gateway.forward(
            target.get(place, CHAT), credential, method=method, headers=headers, json=json_body
        ) as answer:
            assert answer.status == 400
            body = await answer.text()
    assert json.loads(body)["error"]["code"] == "invalid_request" and credential not in body
    assert server.data == b""
    await outbound.nothing_happened(customer)


STAYS = (
    "Cookie",
    "X-Api-Key",
    "X-Goog-Api-Key",
    "Xi-Api-Key",
    "Api-Key",
    "Proxy-Authorization",
    "X-Lava-Anything",
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Client-Cert",
    "X-Real-Ip",
    "True-Client-Ip",
    "Cf-Connecting-Ip",
    "X-Http-Method-Override",
    "Te",
    "Trailer",
    "X-Hop-1",
    "X-Hop-2",
)


async def test_what_names_the_client_or_the_gateway_stays_here(outbound, authority):
    headers = [
        *((name, "stays-here") for name in STAYS),
        ("Connection", "x-hop-1"),
        ("Connection", "keep-alive, x-hop-2"),
        ("X-Kept", "yes"),
    ]
    async with serving(authority.certified(PROVIDER), OK) as server:
        outbound.serve(PROVIDER, server)
        customer = await outbound.gateway.customer()
        sent = {"Authorization": f"Bearer {outbound.gateway.token_for(customer)}", "Host": "evil.dev"}
        url = URL(f"{outbound.gateway.url}/v1/forward?u={CHAT}", encoded=True)
        raw = "".join(f"{name}: {value}\r\n" for name, value in [*sent.items(), *headers])
        reader, writer = await asyncio.open_connection("127.0.0.1", url.port)
        body = json.dumps(chat()).encode()
        head = f"POST {url.raw_path_qs} HTTP/1.1\r\n{raw}Content-Length: {len(body)}\r\n\r\n".encode()
        writer.write(head + body)
        status = await asyncio.wait_for(reader.readline(), 5)
        writer.close()
    assert status.startswith(b"HTTP/1.1 200")
    assert b"stays-here" not in server.data and b"evil.dev" not in server.data
    assert b"X-Kept: yes" in server.data and b"Host: api.openai.com\r\n" in server.data
