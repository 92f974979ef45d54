"""Wallets on a real, empty Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
import redis.asyncio

from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.journal import Journal
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Recovery
from gateway.ledger.wallets import WalletRef, Wallets

REF = WalletRef("wal_1", 3, "mer_1")


class Ledger:
    """The ledger under test and a plain client to look behind it."""

    def __init__(self, connection: Connection, client: redis.asyncio.Redis) -> None:
        self.connection = connection
        self.client = client
        self.keys = Keys()
        self.wallets = Wallets(connection, self.keys, record_ttl_s=60, report_ttl_s=600)
        self.journal = Journal(connection, self.keys)
        self.recovery = Recovery(connection, self.keys)

    async def opened(self, *, cycle: int = 0, limit: int = 0, ref: WalletRef = REF) -> WalletRef:
        await self.wallets.open(ref, status="ok", limit_nano=limit, create=True)
        if cycle:
            await self.wallets.credit(ref, f"grant-{ref.wallet_id}", "cycle", cycle, at_ms=1)
        return ref

    async def balance(self, ref: WalletRef = REF) -> Any:
        return (await self.wallets.balances([ref]))[0]


@pytest_asyncio.fixture
async def ledger(valkey: str, redis_client: redis.asyncio.Redis) -> AsyncIterator[Ledger]:
    connection = Connection(valkey, scripts.load())
    running = asyncio.ensure_future(connection.run())
    await connection.wait_ready(5)
    yield Ledger(connection, redis_client)
    await connection.close()
    await running
