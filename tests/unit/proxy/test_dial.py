"""The WebSocket to the provider goes where the resolver says, and nowhere else."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web

from gateway.errors import ObolError
from gateway.proxy.realtime.dial import Dialer, Refused
from gateway.proxy.resolver import NotSent, Resolver
from gateway.proxy.upstream import Origin

HOST = "api.openai.com"


class Provider:
    """Answers a handshake at /ws, and other things elsewhere."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[web.BaseRequest] = []
        self.asked: list[str] = []
        self.address = "127.0.0.1"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if request.path == "/elsewhere":
            return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{self.port}/ws"})
        if request.path == "/plain":
            return web.Response(text="hello")
        if request.path == "/pieces":
            refusal = web.StreamResponse(status=401)
            await refusal.prepare(request)
            for piece in (b'{"error": ', b'"no"}'):
                await refusal.write(piece)
                await asyncio.sleep(0.05)
            return refusal
        if request.path == "/silent":
            await asyncio.sleep(5)
        made = web.WebSocketResponse(protocols=("realtime",))
        await made.prepare(request)
        async for message in made:
            await made.send_str(message.data)
        return made

    def look_up(self, host: str, port: int) -> list[Any]:
        self.asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.address, self.port))]

    async def dial(self, path: str = "/ws", *, private: bool = True, withheld: bytes = b"", **changes: Any) -> Any:
        resolver = Resolver(cache_s=30, private_hosts={HOST} if private else set(), lookup=self.look_up)
        origin = Origin("http", HOST, 80, HOST, "provider")
        dialer = Dialer(resolver, ssl.create_default_context(), connect_timeout_s=changes.pop("within_s", 5))
        headers = [(b"Authorization", b"Bearer sk-provider"), (b"X-Odd", "ä".encode("latin-1"))]
        return await dialer.connect(
            origin, path, headers, ("realtime", "other"), withheld=withheld, max_message_bytes=1_000, **changes
        )


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


async def test_it_goes_to_the_address_that_was_checked(provider: Provider):
    connected = await provider.dial("/ws?model=a%2Fb")
    await connected.socket.send_frame(b"hello", WSMsgType.TEXT)
    assert (await connected.socket.receive()).data == b"hello"
    await connected.socket.close()
    await connected.session.close()
    (seen,) = provider.seen
    assert provider.asked == [HOST]
    assert seen.raw_path == "/ws?model=a%2Fb"
    assert connected.socket.protocol == "realtime"
    names = [name.decode().lower() for name, _ in seen.raw_headers]
    assert (seen.headers["Host"], seen.headers["Authorization"]) == (HOST, "Bearer sk-provider")
    assert not {"user-agent", "accept", "accept-encoding", "cookie", "sec-websocket-extensions"} & set(names)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
async def test_an_address_that_is_not_public_is_not_connected_to(provider: Provider, address: str):
    provider.address = address
    with pytest.raises(ObolError, match="not public") as refused:
        await provider.dial(private=False)
    assert refused.value.code == "upstream_failed"
    assert provider.seen == []


async def test_a_redirect_is_not_followed(provider: Provider):
    with pytest.raises(Refused) as refused:
        await provider.dial("/elsewhere")
    assert refused.value.status == 302
    assert [request.path for request in provider.seen] == ["/elsewhere"]


async def test_an_answer_that_is_no_websocket_is_refused(provider: Provider):
    with pytest.raises(Refused) as refused:
        await provider.dial("/plain")
    assert (refused.value.status, refused.value.body) == (200, b"hello")


async def test_the_callers_credential_stands_nowhere_in_the_head(provider: Provider):
    for withheld in (b"realtime", b"sk-provider", b"model=secret"):
        with pytest.raises(NotSent, match="credential"):
            await provider.dial("/ws?model=secret", withheld=withheld)
    assert provider.seen == []


async def test_a_provider_that_does_not_answer_is_not_waited_for(provider: Provider):
    with pytest.raises(ObolError) as late:
        await provider.dial("/silent", within_s=0.2)
    assert (late.value.code, late.value.limit) == ("upstream_timeout", "upstream_connect_timeout_ms")


async def test_a_certificate_that_proves_nothing_ends_the_handshake(provider: Provider):
    resolver = Resolver(cache_s=30, private_hosts={HOST}, lookup=provider.look_up)
    dialer = Dialer(resolver, ssl.create_default_context(), connect_timeout_s=5)
    with pytest.raises(ObolError) as failed:
        await dialer.connect(
            Origin("https", HOST, 443, HOST, "provider"), "/ws", [], (), withheld=b"", max_message_bytes=1_000
        )
    assert failed.value.code == "upstream_failed"
    assert provider.seen == []


async def test_a_refusal_that_comes_in_pieces_is_whole(provider: Provider):
    with pytest.raises(Refused) as refused:
        await provider.dial("/pieces")
    assert (refused.value.status, refused.value.body) == (401, b'{"error": "no"}')
