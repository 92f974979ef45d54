"""The gateway's way out: real TLS servers on loopback, a resolver that the test writes, every connection watched."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from certificates import Authority, Heard
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat
from yarl import URL

from gateway.proxy.resolver import Resolver
from gateway.proxy.upstream import Upstream, tls_context
from gateway.testing import FakeProvider

MANAGED = "sk-canary-managed-0123456789abcdef"
OWN = "sk-canary-own-0123456789abcdef"
PROVIDER, ACME = "api.openai.com", "api.acme.dev"


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


@pytest.fixture(scope="module", name="authority")
def authority_fixture(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "authority")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="gateway")
async def gateway_fixture(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider, provider_keys={"openai": MANAGED}) as up:
        up.parts.origins.clear()  # no stand-in: calls go where they are told to
        yield up


@pytest_asyncio.fixture(loop_scope="module", name="outbound")
async def outbound_fixture(gateway: RunningGateway, authority: Authority) -> AsyncIterator[Outbound]:
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
