"""The audit passes a sound installation, beside traffic too, and reports each thing that is corrupted."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests_support import CHAT, chat
from worker_support import SHARDS, USAGE, Installation, installation

from gateway import audit
from gateway.core.meter import from_definition
from gateway.core.usage import Usage
from gateway.ledger.row import encode
from gateway.ledger.wallets import Price, now_ms
from gateway.settings import Settings

GRADUATED_DEFINITION = {
    "tiers": [{"start": 0, "rate": "5"}, {"start": 1_500, "rate": "3"}, {"start": 4_000, "rate": "1"}]
}
GRADUATED = from_definition("meter_g", 1, GRADUATED_DEFINITION)


@pytest_asyncio.fixture
async def obol(valkey: str, redis_client: Any, postgres: str, tmp_path: Path) -> AsyncIterator[Installation]:
    """Calls of every billing mode, reports, an expired and a late call, an open hold; flushed."""
    async with installation(valkey, postgres) as made:
        await populate(made, tmp_path)
        yield made


async def populate(made: Installation, tmp_path: Path) -> None:
    book = await made.add_price_book(tmp_path)
    await made.add_meter(GRADUATED, GRADUATED_DEFINITION)
    ref, other = await made.wallet("wal_1", 1), await made.wallet("wal_2", 2)
    await made.wallet("wal_idle", 3, credit_nano=0)
    for number in range(6):
        await made.report(ref, f"report{number}", GRADUATED)
    cost = book.cost("openai", "m", USAGE)
    assert cost is not None and cost.total_nano == 6_000_000
    priced = {
        "provider": "openai",
        "model": "m",
        "price_version": book.version,
        "input_cost_nano": cost.input_nano,
        "output_cost_nano": cost.output_nano,
        "cost_nano": cost.total_nano,
    }
    await made.hold(other, "call", expires_ms=now_ms() + 60_000)
    await made.settle(other, "call", **priced)
    await made.hold(other, "gone", expires_ms=now_ms() - 1)
    await made.wallets.expire(other, "gone", now_ms())
    await made.hold(other, "late", expires_ms=now_ms() - 1)
    progress = made.row(other, "late", usage=Usage(output_tokens=2_000), status="error", ending="expired")
    await made.wallets.extend(
        other, "late", 0, expires_ms=now_ms() - 1, progress=(Price(flat_nano=4_000_000), encode(progress))
    )
    await made.wallets.expire(other, "late", now_ms())
    await made.settle(other, "late")  # less than what the expiry had debited
    await made.hold(other, "open", expires_ms=now_ms() + 60_000)
    await made.flush()


async def audited(valkey: str, postgres: str, *, recompute: bool = True) -> tuple[int, str]:
    out = io.StringIO()
    settings = Settings(redis_url=valkey, postgres_url=postgres, ledger_shards=SHARDS)
    return await audit.audit(settings, out, recompute=recompute), out.getvalue()


@pytest.mark.parametrize("recompute", [True, False])
async def test_a_sound_installation_passes(obol: Installation, valkey: str, postgres: str, recompute: bool) -> None:
    code, text = await audited(valkey, postgres, recompute=recompute)
    assert (code, "DIFFERENCE" in text) == (0, False), text
    table = {name: int(number) for name, number in re.findall(r"^(\S.*?) {2,}(\d+)$", text, re.MULTILINE)}
    assert table["wallets"] == 3
    assert table["charges recomputed"] == table["requests"] == 9
    assert table["differences"] == 0


IN_POSTGRES = {
    "a pot of the row": (
        "UPDATE wallets SET prepaid_nano = prepaid_nano + 1 WHERE wallet_id = 'wal_1'",
        "prepaid of the row",
    ),
    "a delta": (
        "UPDATE ledger_entries SET overage_delta = 1 WHERE wallet_id = 'wal_1' AND seq = 3",
        "overage in Redis",
    ),
    "an entry": ("DELETE FROM ledger_entries WHERE wallet_id = 'wal_1' AND seq = 3", "ledger entries: expected 1..7"),
    "a seq": ("UPDATE wallets SET last_seq = 99 WHERE wallet_id = 'wal_1'", "entry number in Redis"),
    "a charge": ("UPDATE requests SET charge_nano = charge_nano + 1 WHERE request_id = 'call'", "call  charge_nano"),
    "a cost": (
        "UPDATE requests SET cost_nano = 1 WHERE request_id = 'call'",
        "call  cost_nano: expected 6000000, found 1",
    ),
    "a fee": ("UPDATE requests SET fee_nano = 1 WHERE request_id = 'call'", "call  fee_nano"),
    "a usage": (
        "UPDATE requests SET usage = '{\"input_tokens\": 1}' WHERE request_id = 'report0'",
        "report0  charge_nano",
    ),
    "a position": ("UPDATE requests SET tier_position = 9000 WHERE request_id = 'report0'", "report0  charge_nano"),
    "a late charge": ("UPDATE requests SET charge_nano = 3999999 WHERE request_id = 'late'", "late  charge_nano"),
    "an expired charge": ("UPDATE requests SET charge_nano = 5 WHERE request_id = 'gone'", "gone  charge_nano"),
    "a billing mode": (
        "UPDATE requests SET billing_mode = 'meter_only' WHERE request_id = 'call'",
        "call  charge_nano",
    ),
    "a row": ("DELETE FROM requests WHERE request_id = 'report0'", "rows, by request_index: expected 9, found 8"),
    "a row's money": (
        "DELETE FROM requests WHERE request_id = 'report0'",
        "wal_1  charges of its requests, by its ledger",
    ),
    "an hour": ("UPDATE usage_hourly SET tokens = tokens + 1", "hourly requests, tokens"),
    "a missing hour": ("DELETE FROM usage_hourly", "hourly requests, tokens"),
    "a meter's hour": ("UPDATE usage_by_meter SET tokens = tokens + 1", "of a meter, by those of customers"),
    "a customer's hour": ("UPDATE usage_by_customer SET tokens = tokens + 1", "of a customer, by those of customers"),
    "a price book": ("DELETE FROM price_books", "call  price book"),
    "a meter version": ("DELETE FROM meter_versions WHERE meter_id = 'meter_g'", "report0  meter version"),
    "a reject": (
        "INSERT INTO flush_rejects (shard, number, entry, reason) VALUES (0, 1, '', 'x')",
        "entries in flush_rejects",
    ),
}


@pytest.mark.parametrize(("statement", "told"), IN_POSTGRES.values(), ids=IN_POSTGRES)
async def test_corruption_in_postgres_is_told(
    obol: Installation, valkey: str, postgres: str, statement: str, told: str
) -> None:
    await obol.execute(statement)
    code, text = await audited(valkey, postgres)
    assert code == 1
    assert told in text, text


IN_REDIS = {
    "a pot": (("HINCRBY", "w", "prepaid", 1), "prepaid in Redis, by the ledger up to entry 7"),
    "held": (("HINCRBY", "w", "held", 1), "held in Redis, by its open holds: expected 0, found 1"),
    "the wallet": (("DEL", "w"), "wallet in Redis"),
    "a rewound wallet": (("HSET", "w", "seq", 5), "entry number in Redis"),
    "a meter's units": (("HINCRBY", "t", "meter_g", 1), "units by meter in Redis, by the record"),
    "a hold nobody knows": (("HSET", "h", "w", "obol:{1}:w:wal_x", "a", 5), "open holds of a wallet without a row"),
}


@pytest.mark.parametrize(("command", "told"), IN_REDIS.values(), ids=IN_REDIS)
async def test_corruption_in_redis_is_told(
    obol: Installation, valkey: str, postgres: str, redis_client: Any, command: tuple[Any, ...], told: str
) -> None:
    keys = {"w": obol.keys.wallet(1, "wal_1"), "h": obol.keys.hold(1, "mer_1", "ghost")}
    keys["t"] = obol.keys.tiers(1, "wal_1")
    await redis_client.execute_command(command[0], keys[command[1]], *command[2:])
    if command[1] == "h":
        await redis_client.zadd(obol.keys.holds(1), {keys["h"]: now_ms()})
    code, text = await audited(valkey, postgres)
    assert code == 1
    assert told in text, text


async def test_entries_that_are_never_flushed_are_told(
    obol: Installation, valkey: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FLUSH_WAIT_S", 0.3)
    (ref,) = [await obol.wallet("wal_3")]
    await obol.report(ref, "r1")
    code, text = await audited(valkey, postgres)
    assert code == 1
    assert "wal_3  flushed entries, by Redis: expected 2, found 0" in text


async def test_traffic_beside_it_is_no_difference(obol: Installation, valkey: str, postgres: str) -> None:
    refs = [await obol.wallet(f"wal_busy{number}", number % SHARDS, 10**12) for number in range(6)]
    done = asyncio.Event()

    async def call(number: int) -> None:
        turn = 0
        while not done.is_set():
            request_id, turn = f"busy{number}-{turn}", turn + 1
            await obol.hold(refs[number], request_id, expires_ms=now_ms() + 60_000)
            await asyncio.sleep(0.002)
            await obol.settle(refs[number], request_id)

    async def carry() -> None:
        flusher = obol.flusher()
        while not done.is_set():
            await flusher.flush_once()
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(call(number)) for number in range(6)] + [asyncio.create_task(carry())]
    await asyncio.sleep(0.1)
    results = [await audited(valkey, postgres) for _ in range(3)]
    done.set()
    await asyncio.gather(*tasks)
    assert [text for code, text in results if code] == []
    await obol.flush()
    code, text = await audited(valkey, postgres)
    assert code == 0, text


def test_it_says_why_it_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(Settings(), recompute=False) == 2
    assert "OBOL_REDIS_URL" in capsys.readouterr().err
    closed = Settings(redis_url="redis://127.0.0.1:1/0", postgres_url="postgresql://a:b@127.0.0.1:1/c")
    assert audit.main(closed, recompute=False) == 2
    assert "could not run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "definition",
    [
        {"tiers": [{"start": 0, "rate": "2"}]},
        {"rate_type": "percentage", "tiers": [{"start": 0, "rate": "20"}]},
        {"tiers": [{"start": 0, "rate": "5"}, {"start": 200, "rate": "3"}]},
        {"tier_type": "requests", "tiers": [{"start": 0, "rate": "0.01"}]},
    ],
    ids=["fixed", "percentage", "graduated", "by request"],
)
async def test_what_a_gateway_charged_is_recomputed_exactly(
    gateway: Any, valkey: str, postgres: str, definition: dict[str, Any]
) -> None:
    meter = await gateway.accounts.create_meter(gateway.merchant.merchant_id, "test", "Other", "other", definition)
    customer = await gateway.customer()
    credential = gateway.token_for(customer, meter)
    for steer in ({}, {"prompt_tokens": 1_000, "cached_tokens": 600}, {"fault": "status:500"}, {"fault": "truncated"}):
        for stream in (False, True):
            headers = {"x-fake-provider": json.dumps(steer)}
            async with gateway.forward(CHAT, credential, json=chat(stream=stream), headers=headers) as answer:
                with contextlib.suppress(aiohttp.ClientError):
                    await answer.read()
    async with asyncio.timeout(10):
        while len(await gateway.rows()) < 8:
            await asyncio.sleep(0.02)
    settings = Settings(redis_url=valkey, postgres_url=postgres)
    out = io.StringIO()
    assert await audit.audit(settings, out, recompute=True) == 0, out.getvalue()
    assert re.search(r"charges recomputed +8$", out.getvalue(), re.MULTILINE)
