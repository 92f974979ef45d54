"""A whole gateway in the test's own loop: real Valkey, real PostgreSQL, the fake provider behind every origin."""

from __future__ import annotations

import contextlib
import functools
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import aiohttp
import msgspec
from aiohttp import web

from gateway import app as gateway_app
from gateway import counting, providers
from gateway.billing.accounts import Accounts, NewConnection, NewMerchant, NewMeter
from gateway.core.money import NANO
from gateway.local.demo import METER
from gateway.proxy.listener import Listener, Server
from gateway.settings import Settings
from gateway.store.secrets import Derived
from gateway.testing import FakeProvider
from gateway.worker.flusher import Flusher

MASTER_KEY = "m" * 64

_ranks_read_once = functools.cache(counting._load)
_prices_compiled_once = functools.cache(gateway_app.compile_book)
"""What a gateway reads at its start, the best part of a second together. It stays the same while tests run."""
_STARTED_AT = datetime.now(UTC)


def token(**fields: Any) -> str:
    return b64encode(msgspec.json.encode(fields)).decode()


class RunningGateway:
    """A started gateway, its merchant with a $0.02 per 1K meter, and its fake provider."""

    def __init__(self, url: str, parts, context, provider: FakeProvider, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.parts = parts
        self.context = context
        self.provider = provider
        self.session = session
        settings = context.settings
        self.accounts = Accounts(context.store, context.wallets, Derived(MASTER_KEY), shards=settings.ledger_shards)
        self.flusher = Flusher(
            context.store,
            context.journal,
            shards=settings.ledger_shards,
            batch_entries=settings.flush_batch_entries,
        )
        self.server: Server
        self.merchant: NewMerchant
        self.meter: NewMeter

    async def seed(self) -> None:
        self.merchant = await self.accounts.create_merchant("account", "test", "Test merchant")
        of = self.merchant.merchant_id
        self.meter = await self.accounts.create_meter(of, "test", "Tokens", "tokens", METER)

    async def customer(self, credit_nano: int = 25 * NANO, *, limit_nano: int = 0) -> NewConnection:
        made = await self.accounts.create_customer(self.merchant.merchant_id, "test", limit_nano=limit_nano)
        if credit_nano:
            name = f"grant-{made.connection_id}"
            async with self.context.store.transaction() as db:
                await db.execute(
                    self.context.store.sql("accounts.insert_grant"),
                    name,
                    made.wallet.wallet_id,
                    "cycle",
                    credit_nano,
                    "test",
                )
            await self.context.wallets.credit(made.wallet, name, "cycle", credit_nano, at_ms=1)
        return made

    def token_for(self, customer: NewConnection, meter: NewMeter | None = None, **more: Any) -> str:
        return token(
            secret_key=self.merchant.secret_key,
            connection_secret=customer.connection_secret,
            product_secret=(meter or self.meter).meter_secret,
            **more,
        )

    async def balance(self, customer: NewConnection):
        return (await self.context.wallets.balances([customer.wallet]))[0]

    def forward(self, target: str, credential: str, *, method: str = "POST", headers=None, **arguments: Any):
        """An aiohttp request context manager through the gateway."""
        from yarl import URL

        url = URL(f"{self.url}/v1/forward?u={target}", encoded=True)
        return self.session.request(
            method, url, headers={"Authorization": f"Bearer {credential}", **(headers or {})}, **arguments
        )

    async def rows(self, where: str = "true", *arguments: Any) -> list[dict[str, Any]]:
        """The flushed request rows, oldest first."""
        await self.flusher.flush_once()
        async with self.context.store.connection() as db:
            found = await db.fetch(f"SELECT * FROM requests WHERE {where} ORDER BY created_at", *arguments)
        return [dict(row) for row in found]


def upstream_map(provider: FakeProvider) -> dict[str, str]:
    """Every origin of the provider table, played by one fake."""
    return {origin: provider.url for row in providers.load() for origin in row.origins}


@contextlib.asynccontextmanager
async def _assembled(settings: Settings):
    with (
        mock.patch.object(counting, "_load", _ranks_read_once),
        mock.patch.object(gateway_app, "compile_book", lambda moment: _prices_compiled_once(_STARTED_AT)),
    ):
        async with gateway_app.assemble(settings) as assembled:
            yield assembled


@contextlib.asynccontextmanager
async def running_gateway(
    valkey: str, postgres: str, provider: FakeProvider, *, more_origins: Iterable[str] = (), **changes: Any
):
    """`more_origins`: hosts outside the provider table that the fake provider stands in for, too."""
    origins = upstream_map(provider) | dict.fromkeys(more_origins, provider.url)
    settings = Settings(
        redis_url=valkey,
        postgres_url=postgres,
        master_key=MASTER_KEY,
        test_mode=True,
        upstream_map=origins,
        **changes,
    )
    async with (
        _assembled(settings) as (parts, context, probes),
        aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=60)) as session,
    ):
        runner = Listener(gateway_app.application(context, probes), settings, parts.metrics, shutdown_timeout_s=60)
        await runner.setup()
        gateway_app.route_calls(runner, parts)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        gateway = RunningGateway(f"http://127.0.0.1:{runner.addresses[0][1]}", parts, context, provider, session)
        gateway.server = runner.server
        await gateway.seed()
        try:
            yield gateway
        finally:
            await session.close()
            await runner.cleanup()
            await parts.background.drain(5)
