"""An installation on a Redis that can be set back, with wallets whose figures are known."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from setbacks import Guarded, SettableValkey, guarded, reconnected, settable_valkey

from gateway.core.meter import from_definition
from gateway.core.usage import Usage
from gateway.ledger.recovery import Recovery
from gateway.ledger.row import encode
from gateway.ledger.wallets import Price, WalletRef, now_ms

SETTLED_NANO = 2_500_000
LATER_MS = 10**15
GRADUATED_DEFINITION = {"tiers": [{"start": 0, "rate": "5"}, {"start": 2_000, "rate": "3"}]}
GRADUATED = from_definition("meter_g", 1, GRADUATED_DEFINITION)


@pytest.fixture(scope="module", name="server")
def server_fixture() -> Iterator[SettableValkey]:
    with settable_valkey() as made:
        yield made


@pytest_asyncio.fixture(name="obol")
async def obol_fixture(server: SettableValkey, postgres: str) -> AsyncIterator[Guarded]:
    if not server.pid:
        server.start()
    async with guarded(server.url, postgres, seed=False) as made:
        await made.connection.command("FLUSHALL")
        await made.seed()
        await made.add_meter(GRADUATED, GRADUATED_DEFINITION)
        yield made


async def set_back(obol: Guarded, server: SettableValkey, copy: Any) -> None:
    """Stop, take the older files, start; until the installation is connected again."""
    generation = obol.connection.generation
    server.stop()
    if copy is not None:
        server.put_back(copy)
    server.start()
    await reconnected(obol.connection, generation)


async def set_back_unaccepted(obol: Guarded, server: SettableValkey, copy: Any) -> None:
    """The same, as if nobody had asked whether the server may be used."""
    asked, obol.connection._on_new_server = obol.connection._on_new_server, None
    try:
        await set_back(obol, server, copy)
    finally:
        obol.connection._on_new_server = asked


async def kind_of_hold(obol: Guarded, ref: WalletRef, name: str) -> str:
    return (await obol.wallets.hold(ref, name, 1, expires_ms=LATER_MS, descriptor=b"{}")).kind


async def agree(obol: Guarded, *refs: WalletRef) -> None:
    """Redis shows what PostgreSQL says, tier counters included, and the journals are empty."""
    assert await obol.flush() == 0
    recovery = Recovery(obol.connection, obol.keys)
    for ref in refs:
        assert await obol.live(ref) == await obol.recorded(ref), ref
        stored = await obol.fetch("SELECT meter_id, units FROM wallet_meters WHERE wallet_id = $1", ref.wallet_id)
        assert await recovery.units(ref) == {row["meter_id"]: row["units"] for row in stored}, ref


async def spent_and_set_back(obol: Guarded, server: SettableValkey) -> tuple[WalletRef, WalletRef]:
    """wal_1 and wal_2 on one shard; Redis then lost what wal_1 did last: a call, a report, an expiry and a credit."""
    first, second = await obol.wallet("wal_1"), await obol.wallet("wal_2")
    for name in ("call", "open", "expired"):
        await obol.hold(first, name, expires_ms=LATER_MS)
    await obol.hold(second, "other", expires_ms=LATER_MS)
    await obol.report(first, "before", GRADUATED)
    await obol.flush()
    copy = server.copy()
    await obol.settle(first, "call")
    await obol.report(first, "report", GRADUATED)
    progress = Price(flat_nano=700_000), encode(obol.row(first, "expired", usage=Usage(output_tokens=350)))
    await obol.wallets.extend(first, "expired", 0, expires_ms=now_ms() - 1, progress=progress)
    assert await obol.wallets.expire(first, "expired", now_ms()) == "expired"
    await obol.wallets.credit(first, "grant-late", "bundle", 9_000, at_ms=now_ms())
    await obol.flush()
    await set_back(obol, server, copy)
    return first, second
