"""What leaves the gateway, and where to: real TLS servers on loopback, a resolver that the test writes, no network."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from certificates import LONG_AGO, OK, Authority, Heard, serving
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat
from yarl import URL

from gateway.errors import ConfigurationError, ObolError
from gateway.proxy.http_client import Timeouts
from gateway.proxy.resolver import Resolver
from gateway.proxy.upstream import Origin, Request, Upstream, tls_context
from gateway.testing import FakeProvider

pytestmark = pytest.mark.asyncio(loop_scope="module")

MANAGED = "sk-canary-managed-0123456789abcdef"
OWN = "sk-canary-own-0123456789abcdef"
PROVIDER, ACME = "api.openai.com", "api.acme.dev"
PUBLIC = "93.184.215.14"


class Outbound:
    """The gateway's way out for one test. `names`: what each host resolves to, in turn, the last answer for ever."""

    def __init__(self, gateway: RunningGateway, authority: Authority) -> None:
        self.gateway = gateway
        self.names: dict[str, list[list[tuple[str, int]]]] = {}
        self.asked: list[str] = []
        self.private: set[str] = set()
        self.connects: list[tuple[str, int]] = []
        self.upstream = Upstream(
            connections_max=64,
            connect_timeout_s=2,
            idle_s=30,
            resolver=Resolver(cache_s=0.05, private_hosts=self.private, lookup=self._look_up),
            tls=tls_context(str(authority.file)),
        )

    def serve(self, name: str, *servers: Heard, host: str = "127.0.0.1") -> None:
        """`name` is vouched for, and resolves to the first server, then to the next one."""
        self.names[name] = [[(host, server.port)] for server in servers]
        self.private.add(name)

    def _look_up(self, host: str, port: int) -> list[Any]:
        self.asked.append(host)
        answers = self.names.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in at], socket.SOCK_STREAM, 6, "", (at, number or port)) for at, number in found]

    async def call(self, target: str = CHAT, *, key: str | None = None, method: str = "POST", **arguments: Any):
        """Status, headers and body of a call by a customer of its own, and that customer."""
        customer = await self.gateway.customer()
        credential = self.gateway.token_for(customer, **({"provider_key": key} if key else {}))
        if method == "POST" and "data" not in arguments:
            arguments["json"] = chat()
        async with self.gateway.forward(
            target, credential, method=method, allow_redirects=False, **arguments
        ) as answer:
            return answer, await answer.read(), customer

    async def nothing_happened(self, customer: Any) -> None:
        """No connection was tried, no hold is left, nothing was charged, and there is no row."""
        async with asyncio.timeout(5):
            while (await self.gateway.balance(customer)).held_nano:
                await asyncio.sleep(0.01)
        assert self.connects == []
        assert (await self.gateway.balance(customer)).cycle_nano == 25 * 10**9
        assert await self.gateway.rows("connection_id = $1", customer.connection_id) == []


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "authority")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider, provider_keys={"openai": MANAGED}) as up:
        up.parts.origins.clear()  # no stand-in: calls go where they are told to
        yield up


@pytest_asyncio.fixture(loop_scope="module")
async def outbound(gateway: RunningGateway, authority: Authority) -> AsyncIterator[Outbound]:
    made, before = Outbound(gateway, authority), gateway.parts.upstream
    gateway.parts.upstream = made.upstream
    running = asyncio.ensure_future(made.upstream.run())
    with watched(made.connects, gateway):
        yield made
    running.cancel()
    await made.upstream.close()
    gateway.parts.upstream = before


class Watch:
    """An audit hook cannot be taken out again, so there is one, which tells whoever listens at the moment."""

    def __init__(self) -> None:
        self.listener: Any = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and self.listener is not None and isinstance(arguments[1], tuple):
            self.listener(arguments[1])


WATCH = Watch()


@contextlib.contextmanager
def watched(connects: list[tuple[str, int]], gateway: RunningGateway) -> Iterator[None]:
    """Every address that this process connects to, but the gateway's and the engines' own."""
    settings = gateway.context.settings
    ours = {URL(url).port for url in (gateway.url, settings.redis_url, settings.postgres_url)}
    WATCH.listener = lambda address: None if address[1] in ours else connects.append(tuple(address[:2]))
    yield
    WATCH.listener = None


# A key goes to its exact origin, over TLS


async def test_the_installations_key_goes_to_the_named_host_over_verified_tls(outbound, authority):
    async with serving(authority.certified(PROVIDER)) as server:
        outbound.serve(PROVIDER, server)
        for _ in range(2):
            answer, body, _ = await outbound.call()
            assert (answer.status, body) == (200, b"{}")
    assert server.data.count(f"\r\nauthorization: Bearer {MANAGED}\r\n".encode()) == 2
    assert server.data.count(b"\r\nHost: api.openai.com\r\n") == 2
    assert (server.names, server.protocols, server.handshakes) == ([PROVIDER], ["http/1.1"], 1)
    assert outbound.connects == [("127.0.0.1", server.port)]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("wrong name", "Hostname mismatch"),
        ("wrong domain", "Hostname mismatch"),
        ("expired", "certificate has expired"),
        ("self-signed", "self-signed certificate"),
        ("unknown authority", "unable to get local issuer certificate"),
    ],
)
@pytest.mark.parametrize("host", [PROVIDER, ACME])
async def test_a_host_that_cannot_prove_its_name_is_told_nothing(outbound, authority, tmp_path, host, kind, why):
    made = {
        "wrong name": lambda: authority.certified("evil.dev"),
        "wrong domain": lambda: authority.certified(f"x.{host}", "*." + host, "openai.com"),
        "expired": lambda: authority.certified(host, valid=LONG_AGO),
        "self-signed": lambda: authority.self_signed(host),
        "unknown authority": lambda: Authority(tmp_path / "other").certified(host),
    }[kind]()
    async with serving(made) as server:
        outbound.serve(host, server)
        answer, body, customer = await outbound.call(f"https://{host}/v1/chat/completions", key=OWN)
    assert answer.status == 502
    error = json.loads(body)["error"]
    assert error["code"] == "upstream_failed"
    assert host in error["message"] and why in error["message"]
    assert server.data == b""
    assert (await outbound.gateway.balance(customer)).cycle_nano == 25 * 10**9


async def test_a_host_without_tls_is_told_nothing(outbound):
    heard = b""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = await reader.read(4096)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    outbound.names[PROVIDER] = [[server.sockets[0].getsockname()]]
    outbound.private.add(PROVIDER)
    answer, body, _ = await outbound.call()
    server.close()
    assert (answer.status, json.loads(body)["error"]["code"]) == (502, "upstream_failed")
    assert heard.startswith(b"\x16\x03\x01") and b"HTTP" not in heard and MANAGED.encode() not in heard


async def test_the_loop_of_production_checks_alike(authority):
    """The tests' own loop is asyncio's; a gateway runs on uvloop, with TLS and sockets of its own."""

    async def scenario() -> list[str]:
        told = []
        for made in (authority.certified(ACME), authority.certified("evil.dev"), authority.self_signed(ACME), None):
            async with serving(made) as server:
                where = [
                    (socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, server.port)) for at in ("127.0.0.9", "127.0.0.1")
                ]
                resolver = Resolver(cache_s=30, private_hosts={ACME}, lookup=lambda *_, where=where: where)
                upstream = Upstream(
                    connections_max=8,
                    connect_timeout_s=0.5,
                    idle_s=30,
                    resolver=resolver,
                    tls=tls_context(str(authority.file)),
                )
                try:
                    response = await upstream.send(
                        Origin("https", ACME, 443, ACME), Request(method="GET", path="/", headers=[]), Timeouts(5, 5, 5)
                    )
                    told.append(f"{response.status} {await response.read()!r}")
                    response.close()
                except ObolError as error:
                    told.append(f"{error.code}: {error.message}")
                await upstream.close()
                while upstream.open_connections:
                    await asyncio.sleep(0.01)
                assert upstream._opening == 0
        return told

    ok, wrong, own, plain = await asyncio.to_thread(uvloop.run, scenario())
    assert ok == "200 b'{}'"
    assert "Hostname mismatch" in wrong and wrong.startswith("upstream_failed")
    assert "self-signed" in own
    assert plain == f"upstream_timeout: {ACME} did not accept a connection in time"


async def test_a_connection_of_one_host_never_serves_another(outbound, authority):
    async with serving(authority.certified(PROVIDER, ACME, "api.acme.app")) as server:
        for host in (PROVIDER, ACME, "api.acme.app"):
            outbound.serve(host, server)
        for host in (PROVIDER, ACME, "api.acme.app", PROVIDER, ACME, "api.acme.app"):
            answer, _, _ = await outbound.call(f"https://{host}/v1/chat/completions", key=OWN)
            assert answer.status == 200
    assert (server.handshakes, server.names) == (3, [PROVIDER, ACME, "api.acme.app"])


# What is no plain https host is refused before a name is asked for

SPELLINGS = [
    "https://user:pw@api.openai.com/v1/x",
    "https://api.openai.com@evil.dev/v1/x",
    "https://api.openai.com%40evil.dev/v1/x",
    "https://evil.dev%23@api.openai.com/v1/x",
    "https%3A%2F%2Fevil.dev%23%40api.openai.com%2Fv1%2Fx",
    "https%3A%2F%2Fevil.dev%5C%40api.openai.com%2Fv1%2Fx",
    "https://api.openai.com:8443/v1/x",
    "https://api.openai.com:80/v1/x",
    "https://api.openai.com:0443/v1/x",
    "https://api.openai.com:/v1/x",
    "http://api.openai.com/v1/x",
    "http://api.openai.com:443/v1/x",
    "HTTP://api.acme.dev/x",
    "ftp://api.acme.dev/x",
    "file:///etc/passwd",
    "https://api.openai.com./v1/x",
    "https://127.0.0.1/x",
    "https://127.0.0.1./x",
    "https://127.1/x",
    "https://2130706433/x",
    "https://017700000001/x",
    "https://0177.0.0.1/x",
    "https://0x7f000001/x",
    "https://0x7f.0.0.1/x",
    "https://0X7F.1/x",
    "https://1.1.1.1/x",
    "https://169.254.169.254/latest/meta-data",
    "https://[::1]/x",
    "https://[::]/x",
    "https://[::ffff:127.0.0.1]/x",
    "https://[::ffff:7f00:1]/x",
    "https://[0:0:0:0:0:ffff:7f00:0001]/x",
    "https://[64:ff9b::7f00:1]/x",
    "https://[fe80::1%25lo]/x",
    "https://[::1]:443/x",
    "https://%31%32%37.0.0.1/x",
    "https%3A%2F%2F%2531%2532%2537.0.0.1%2Fx",
    "https%3A%2F%2F%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1%2Fx",  # full-width digits
    "https%3A%2F%2F127%E3%80%820%E3%80%820%E3%80%821%2Fx",  # ideographic full stops
    "https%3A%2F%2F%E2%91%A0%E2%91%A1%E2%91%A6.0.0.1%2Fx",  # circled digits
    "https%3A%2F%2Fapi.op%D0%B5nai.com%2Fx",  # a Cyrillic e
    "https://xn--api-7ba.openai.com/x",
    "https://localhost/x",
    "https://localhost./x",
    "https://localhost.localdomain/x",
    "https://app.localhost/x",
    "https://metadata.google.internal/x",
    "https://printer.local/x",
    "https://redis/x",
    "https://api.openai.com%00.evil.dev/x",
    "https://api.openai.com%0d%0aHost:%20evil.dev/x",
    "https://api.openai.com/v1/%2e%2e/x",
    "https://api.openai.com//evil.dev/x",
    "//evil.dev/x",
]


@pytest.mark.parametrize("target", SPELLINGS)
async def test_odd_spellings_are_refused_before_a_socket_opens(outbound, target):
    answer, body, customer = await outbound.call(target, key=OWN)
    assert answer.status == 400
    assert json.loads(body)["error"]["code"] == "forward_target_invalid"
    assert outbound.asked == []
    await outbound.nothing_happened(customer)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "::1",
        "fd00:ec2::254",
        "fe80::1",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
    ],
)
async def test_a_merchants_host_with_an_address_that_is_not_public_is_refused_before_a_socket_opens(outbound, address):
    outbound.names[ACME] = [[(PUBLIC, 0), (address, 0)]]
    answer, body, customer = await outbound.call(f"https://{ACME}/x", key=OWN)
    assert answer.status == 400
    error = json.loads(body)["error"]
    assert (error["code"], error["param"]) == ("forward_target_invalid", "u")
    assert address not in error["message"]
    await outbound.nothing_happened(customer)


async def test_the_tables_hosts_are_checked_too(outbound):
    outbound.names[PROVIDER] = [[("10.0.0.1", 0)]]
    answer, body, _ = await outbound.call()
    assert (answer.status, json.loads(body)["error"]["code"]) == (502, "upstream_failed")
    assert outbound.connects == []


async def test_an_answer_that_changes_between_check_and_connect_gains_nothing(outbound, authority):
    async with serving(authority.certified(ACME)) as first, serving(authority.certified(ACME)) as second:
        outbound.serve(ACME, first, second)
        answer, _, _ = await outbound.call(f"https://{ACME}/x", key=OWN)
        assert answer.status == 200
    # One resolution, and the connection is to what it said.
    assert outbound.asked == [ACME]
    assert outbound.connects == [("127.0.0.1", first.port)]
    assert (first.handshakes, second.handshakes) == (1, 0)


async def test_a_name_that_turns_private_is_refused_at_the_next_connection(outbound):
    outbound.names[ACME] = [[(PUBLIC, 0)], [("127.0.0.1", 0)]]
    assert [info[4][0] for info in await outbound.upstream.resolver.addresses(ACME, 443, "own")] == [PUBLIC]
    await asyncio.sleep(0.06)
    answer, _, customer = await outbound.call(f"https://{ACME}/x", key=OWN)
    assert answer.status == 400
    assert outbound.asked == [ACME, ACME]
    await outbound.nothing_happened(customer)


async def test_the_next_address_is_tried_where_one_does_not_answer(outbound, authority):
    with socket.socket() as full, contextlib.ExitStack() as queued:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # its queue is full: whoever connects now waits
            waiting = queued.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        outbound.connects.clear()
        async with serving(authority.certified(ACME)) as server:
            outbound.serve(ACME, server)
            outbound.names[ACME] = [[("::1", 1), full.getsockname(), ("127.0.0.1", server.port)]]
            answer, _, _ = await asyncio.wait_for(outbound.call(f"https://{ACME}/x", key=OWN), 1.5)
    assert answer.status == 200
    assert len(outbound.connects) == 3 and outbound.connects[-1] == ("127.0.0.1", server.port)


async def test_nobody_answers_in_time(outbound):
    with socket.socket() as full, contextlib.ExitStack() as queued:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = queued.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        outbound.names[ACME] = [[full.getsockname()]]
        outbound.private.add(ACME)
        outbound.upstream._connect_timeout_s = 0.2
        answer, body, _ = await outbound.call(f"https://{ACME}/x", key=OWN)
    assert (answer.status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")
    assert outbound.upstream._opening == outbound.upstream.open_connections == 0


# Hosts of a merchant's own


@pytest.mark.parametrize(
    "target",
    [
        f"https://{ACME}/x",
        "https://API.ACME.DEV/x",
        "https://x.api.openai.com/v1/chat/completions",
        "https://openai.com/v1/chat/completions",
        "https://api.openai.com.evil.dev/v1/chat/completions",
        "https://evil-api.openai.com/v1/chat/completions",
        "https://generativelanguage.googleapis.com.acme.dev/v1beta/models/x:generateContent",
    ],
)
async def test_hosts_outside_the_table_need_a_key_of_the_callers_own(outbound, authority, target):
    host = target.split("/")[2].lower()
    answer, body, customer = await outbound.call(target)
    assert answer.status == 400 and b'"forward_endpoint_not_supported"' in body
    assert outbound.asked == []
    await outbound.nothing_happened(customer)
    async with serving(authority.certified(host)) as server:
        outbound.serve(host, server)
        answer, _, _ = await outbound.call(target, key=OWN)
        assert answer.status == 200
    assert f"authorization: Bearer {OWN}\r\n".encode() in server.data
    assert MANAGED.encode() not in server.data


# What answers say, and what is never passed on


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


async def test_hosts_that_are_no_longer_used_are_forgotten(outbound, authority):
    async with serving(authority.certified(ACME)) as server:
        outbound.serve(ACME, server)
        await outbound.call(f"https://{ACME}/x", key=OWN)
        assert len(outbound.upstream._idle) == 1
        outbound.upstream._idle_s = -1.0
        async with asyncio.timeout(3):
            while outbound.upstream._idle:
                await asyncio.sleep(0.05)
    assert outbound.upstream.open_connections == 0


async def test_a_file_of_authorities_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("absent.pem", "empty.pem"):
        with pytest.raises(ConfigurationError, match="OBOL_UPSTREAM_CA_FILE"):
            tls_context(str(tmp_path / name))


# Webhooks are targets, too


async def test_a_webhook_endpoint_with_a_private_address_is_not_taken(gateway, monkeypatch):
    answers = {"hooks.acme.dev": "10.1.2.3", "meta.acme.dev": "169.254.169.254", "fine.acme.dev": "93.184.215.14"}
    stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, *_, **__: [(*stream, (answers[host], port))])
    headers = {"Authorization": f"Bearer {gateway.merchant.secret_key}"}
    statuses = {}
    for host in answers:
        body = {"name": "Hook", "url": f"https://{host}/in"}
        async with gateway.session.post(f"{gateway.url}/v1/webhooks", json=body, headers=headers) as reply:
            statuses[host] = (reply.status, (await reply.json()).get("error", {}).get("param"))
    assert statuses == {
        "hooks.acme.dev": (400, "url"),
        "meta.acme.dev": (400, "url"),
        "fine.acme.dev": (201, None),
    }
