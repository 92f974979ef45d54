"""A merchant with wallets on real engines, and what a gateway would do to them."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.core.meter import Meter, from_definition
from gateway.core.usage import Usage
from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.journal import Journal
from gateway.ledger.keys import Keys
from gateway.ledger.row import RequestRow, encode
from gateway.ledger.wallets import Price, Settled, WalletRef, Wallets, now_ms
from gateway.prices import BookContent, PriceBook, read_operator_prices
from gateway.store.postgres import Store
from gateway.worker.flusher import Flusher

SHARDS = 4
CREATED_US = 1_790_000_123_456_789
USAGE = Usage(input_tokens=1_000, output_tokens=250)
DEFINITION = {"tiers": [{"start": 0, "rate": "2"}]}
METER = from_definition("meter_1", 1, DEFINITION)


@dataclass
class Installation:
    store: Store
    connection: Connection
    keys: Keys = field(default_factory=Keys)

    def __post_init__(self) -> None:
        self.wallets = Wallets(self.connection, self.keys, record_ttl_s=900, report_ttl_s=172_800)
        self.journal = Journal(self.connection, self.keys)

    def flusher(self, **changes: Any) -> Flusher:
        given = {"store": self.store, "journal": self.journal, "shards": SHARDS, "batch_entries": 100} | changes
        return Flusher(given.pop("store"), given.pop("journal"), **given)

    async def flush(self) -> int:
        flusher, total = self.flusher(), 0
        while carried := await flusher.flush_once():
            total += carried
        return total

    async def execute(self, statement: str, *arguments: Any) -> str:
        async with self.store.connection() as connection:
            return await connection.execute(statement, *arguments)

    async def value(self, statement: str, *arguments: Any) -> Any:
        async with self.store.connection() as connection:
            return await connection.fetchval(statement, *arguments)

    async def fetch(self, statement: str, *arguments: Any) -> list[dict[str, Any]]:
        async with self.store.connection() as connection:
            return [dict(row) for row in await connection.fetch(statement, *arguments)]

    async def seed(self) -> None:
        await self.execute(
            "INSERT INTO merchants (merchant_id, account_id, mode, name) VALUES ('mer_1', 'acc_1', 'test', 'Test')"
        )
        await self.add_meter(METER, DEFINITION)

    async def add_meter(self, meter: Meter, definition: dict[str, Any]) -> None:
        await self.execute(
            "INSERT INTO meters (meter_id, merchant_id, meter_slug, secret_hash, name, version, definition) "
            "VALUES ($1, 'mer_1', $1, $2, $1, 1, $3)",
            meter.meter_id,
            meter.meter_id.encode(),
            definition,
        )
        await self.execute(
            "INSERT INTO meter_versions (meter_id, version, definition) VALUES ($1, 1, $2)", meter.meter_id, definition
        )

    async def wallet(self, name: str, shard: int = 1, credit_nano: int = 10**9) -> WalletRef:
        ref = WalletRef(name, shard, "mer_1")
        await self.execute("INSERT INTO wallets (wallet_id, merchant_id, shard) VALUES ($1, 'mer_1', $2)", name, shard)
        await self.wallets.open(ref, status="ok", limit_nano=0, create=True)
        if credit_nano:
            await self.wallets.credit(ref, f"grant-{name}", "prepaid", credit_nano, at_ms=now_ms())
        return ref

    def row(self, ref: WalletRef, request_id: str, /, **changes: Any) -> RequestRow:
        given: dict[str, Any] = {
            "merchant_id": ref.merchant_id,
            "request_id": request_id,
            "created_us": CREATED_US,
            "billing_mode": "customer",
            "connection_id": f"con_{ref.wallet_id}",
            "meter_id": METER.meter_id,
            "meter_version": 1,
            "usage": USAGE,
        }
        return RequestRow(**(given | changes))

    async def report(self, ref: WalletRef, request_id: str, meter: Meter = METER, **changes: Any) -> Settled:
        """A reported request, as the API journals it."""
        changes = {"billing_mode": "report", "meter_id": meter.meter_id} | changes
        row = self.row(ref, request_id, **changes)
        return await self.report_body(ref, request_id, encode(row), meter, row.usage)

    async def report_body(
        self, ref: WalletRef, request_id: str, body: bytes, meter: Meter = METER, usage: Usage = USAGE
    ) -> Settled:
        charge = meter.charge(usage, 0)
        price = Price.of(meter, charge.units, charge.amount_nano, 0)
        return await self.wallets.report(ref, request_id, price, at_ms=now_ms(), body=body)

    async def hold(self, ref: WalletRef, request_id: str, *, expires_ms: int, amount_nano: int = 5_000_000) -> None:
        row = self.row(ref, request_id, usage=Usage(), status="error", ending="expired")
        held = await self.wallets.hold(ref, request_id, amount_nano, expires_ms=expires_ms, descriptor=encode(row))
        assert held.kind == "held"

    async def settle(self, ref: WalletRef, request_id: str, **changes: Any) -> Settled:
        row = self.row(ref, request_id, **changes)
        charge = METER.charge(row.usage, row.cost_nano)
        price = Price.of(METER, charge.units, charge.amount_nano, row.cost_nano)
        return await self.wallets.settle(ref, request_id, price, at_ms=now_ms(), body=encode(row))

    async def add_price_book(self, tmp_path: Any) -> PriceBook:
        """A book with one model of one provider, stored as gateways store theirs."""
        path = tmp_path / "prices.toml"
        path.write_text(
            '[[price]]\nprovider = "openai"\nmodels = ["m"]\nrates = { input_mtok = "3", output_mtok = "12" }\n'
        )
        book = PriceBook(BookContent(read_operator_prices(path), {}, {}))
        await self.execute(
            "INSERT INTO price_books (version, content) VALUES ($1, $2)", book.version, gzip.compress(book.to_json())
        )
        return book


@asynccontextmanager
async def installation(valkey: str, postgres: str) -> AsyncIterator[Installation]:
    connection = Connection(valkey, scripts.load())
    keeper = asyncio.create_task(connection.run())
    store = await Store.connect(postgres)
    try:
        await connection.wait_ready(10)
        made = Installation(store, connection)
        await made.seed()
        yield made
    finally:
        await connection.close()
        keeper.cancel()
        await asyncio.wait([keeper])
        await store.close()


def created_at() -> datetime:
    seconds, microsecond = divmod(CREATED_US, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microsecond)


def stored_usage(usage: Usage) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(usage))
