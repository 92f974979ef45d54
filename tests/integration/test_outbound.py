"""Where calls leave the gateway to: real TLS servers on loopback, a resolver that the test writes, no network."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest
import uvloop
from certificates import LONG_AGO, Authority, serving
from outbound import ACME, MANAGED, OWN, PROVIDER, authority_fixture, gateway_fixture, outbound_fixture  # noqa: F401

from gateway.errors import ConfigurationError, ObolError
from gateway.proxy.http_client import Timeouts
from gateway.proxy.resolver import Resolver
from gateway.proxy.upstream import Origin, Request, Upstream, tls_context

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC = "93.184.215.14"


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
