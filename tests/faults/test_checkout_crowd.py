"""200 customers who go through the checkout at once, each from the phone to the receipt, with a $25 plan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio
from checkout_customer import ALWAYS_ASKS, GOOD, LATER, Browser, plan, session
from running import RunningGateway, running_gateway

from gateway.testing import FakeProvider

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("charges")]

CUSTOMERS = 200
WENT_THROUGH = """
SELECT (SELECT count(*) FROM connections WHERE merchant_id = $1 AND deleted_at IS NULL AND NOT is_self) AS customers,
       (SELECT count(DISTINCT payer_id) FROM connections WHERE merchant_id = $1) AS payers,
       (SELECT count(*) FROM subscriptions WHERE merchant_id = $1 AND status = 'active') AS subscriptions,
       (SELECT count(*) FROM checkout_sessions WHERE merchant_id = $1 AND completed_at IS NOT NULL) AS completed,
       (SELECT sum(amount_cents)::int FROM charges WHERE merchant_id = $1 AND status = 'succeeded') AS cents,
       (SELECT sum(s.amount_cents)::int FROM sandbox_charges s JOIN charges h USING (charge_id)
        WHERE h.merchant_id = $1 AND s.status = 'succeeded') AS paid_cents
"""


async def go_through(gateway: RunningGateway, plan_id: str, number: int) -> float:
    """Return how long the confirmation took, in seconds. Every tenth card is declined first, every tenth asks."""
    made = await session(gateway, "subscription", plan_id=plan_id)
    browser = Browser(gateway, made["secret"])
    card = {1: LATER, 2: ALWAYS_ASKS}.get(number % 10, GOOD)
    await browser.arrive(f"+1555200{number:04}", card)
    if card == ALWAYS_ASKS:
        await browser.send("approve_card", approved="yes")
    began_s = time.monotonic()
    seen = await browser.send("confirm")
    took_s = time.monotonic() - began_s
    if card == LATER:
        await browser.send("other_card")
        await browser.card()
        seen = await browser.send("confirm")
    elif card == ALWAYS_ASKS:
        seen = await browser.send("approve_payment", approved="yes")
    assert seen.heading == "Thank you", seen.text
    return took_s


async def test_two_hundred_customers_at_once(
    valkey: str, redis_client: redis.asyncio.Redis, postgres: str, record_property: Callable[[str, Any], None]
) -> None:
    async with FakeProvider() as provider, running_gateway(valkey, postgres, provider) as gateway:
        sold = await plan(gateway)
        began_s = time.monotonic()
        took_s = sorted(
            await asyncio.gather(*(go_through(gateway, sold["plan_id"], number) for number in range(CUSTOMERS)))
        )
        all_s = time.monotonic() - began_s
        async with gateway.context.store.connection() as db:
            row = await db.fetchrow(WENT_THROUGH, gateway.merchant.merchant_id)
            differing = await db.fetch(gateway.context.store.sql("audit_charges.differing"))
        counted = ("customers", "payers", "subscriptions", "completed")
        assert [row[name] for name in counted] == [CUSTOMERS] * len(counted)
        assert row["cents"] == row["paid_cents"] == 2_500 * CUSTOMERS
        assert differing == []
    record_property("scenario", f"{CUSTOMERS} checkouts at once")
    record_property("took s", f"{all_s:.1f}")
    print(f"{CUSTOMERS} checkouts in {all_s:.1f} s; confirm p50 {took_s[100]:.2f} s, p99 {took_s[197]:.2f} s")
