"""The test clock: over the API and the command line; what follows it and what does not."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat

from gateway import clock as command
from gateway.billing.clock import AHEAD_MAX_DAYS
from gateway.errors import ConfigurationError
from gateway.testing import FakeProvider

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider) as running:
        yield running


async def merchant(gateway: RunningGateway, name: str, mode: str = "test") -> tuple[str, str]:
    """A merchant of the test's own: its id and secret key."""
    made = await gateway.accounts.create_merchant(name, mode, name)
    return made.merchant_id, made.secret_key


async def call(gateway: RunningGateway, key: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    method = "GET" if body is None else "POST"
    url, head = f"{gateway.url}/v1/test_clock", {"Authorization": f"Bearer {key}"}
    async with gateway.session.request(method, url, headers=head, json=body) as answer:
        return answer.status, await answer.json()


def ahead(shown: str) -> timedelta:
    return datetime.fromisoformat(shown) - datetime.now(UTC)


def near(found: timedelta, expected: timedelta) -> bool:
    return abs(found - expected) < timedelta(seconds=30)


async def test_it_is_moved_by_a_span_and_to_a_time_and_never_back(gateway: RunningGateway) -> None:
    _, key = await merchant(gateway, "moved")
    status, shown = await call(gateway, key)
    assert status == 200 and near(ahead(shown["now"]), timedelta()) and shown["offset_seconds"] == 0
    assert (shown["status"], shown["turns_due"]) == ("ready", 0)
    _, shown = await call(gateway, key, {"advance_seconds": 86_400})
    assert shown["offset_seconds"] == 86_400 and near(ahead(shown["now"]), timedelta(days=1))
    to = datetime.now(UTC) + timedelta(days=40)
    _, shown = await call(gateway, key, {"now": to.isoformat()})
    assert near(datetime.fromisoformat(shown["now"]) - to, timedelta())
    for body, param in (
        ({"now": "2020-01-01T00:00:00Z"}, "now"),
        ({"now": "soon"}, "now"),
        ({"now": "9999-12-31T23:59:59-12:00"}, "now"),
        ({}, "now"),
        ({"now": to.isoformat(), "advance_seconds": 1}, "now"),
        ({"advance_seconds": -1}, "advance_seconds"),
        ({"advance_seconds": "a week"}, "advance_seconds"),
        ({"advance_seconds": AHEAD_MAX_DAYS * 86_400}, "advance_seconds"),
    ):
        status, told = await call(gateway, key, body)
        assert (status, told["error"]["code"], told["error"]["param"]) == (400, "invalid_request", param), body
    assert near(ahead((await call(gateway, key))[1]["now"]), timedelta(days=40)), "what was refused changed nothing"


async def test_moves_at_once_are_all_made_and_none_goes_back(gateway: RunningGateway) -> None:
    _, key = await merchant(gateway, "hurried")
    moves = [call(gateway, key, {"advance_seconds": seconds}) for seconds in (864_000, *[3] * 12)]
    assert {status for status, _ in await asyncio.gather(*moves)} == {200}
    assert (await call(gateway, key))[1]["offset_seconds"] == 864_036


async def test_a_live_merchant_has_no_clock_of_its_own(gateway: RunningGateway) -> None:
    _, key = await merchant(gateway, "live", "live")
    status, told = await call(gateway, key, {"advance_seconds": 1})
    assert (status, told["error"]["code"]) == (403, "test_clock_refused")
    assert near(ahead((await call(gateway, key))[1]["now"]), timedelta())


async def test_rows_are_of_the_merchants_time_in_a_partition_of_their_month(gateway: RunningGateway) -> None:
    """A call and a report; the ledger's own times stay real, and other merchants notice nothing."""
    customer = await gateway.customer()
    key = gateway.merchant.secret_key
    await call(gateway, key, {"advance_seconds": 400 * 86_400})
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat()) as answer:
        assert answer.status == 200
        called = answer.headers["x-lava-request-id"]
        await answer.read()
    head = {"Authorization": f"Bearer {key}"}
    body = {"request_id": "reported", "connection_id": customer.connection_id, "product_id": gateway.meter.meter_id}
    async with gateway.session.post(
        f"{gateway.url}/v1/requests", headers=head, json=body | {"input_tokens": 7}
    ) as answer:
        shown = await answer.json()
        assert answer.status == 200, shown
    expected = timedelta(days=400)
    assert near(ahead(shown["created_at"]), expected)
    rows = {row["request_id"]: row["created_at"] for row in await gateway.rows()}
    assert all(near(rows[name] - datetime.now(UTC), expected) for name in (called, "reported")), rows
    async with gateway.context.store.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM requests_default") == 0
        at = await db.fetch("SELECT at FROM ledger_entries WHERE kind IN ('call', 'report')")
    assert len(at) == 2 and all(near(row["at"] - datetime.now(UTC), timedelta()) for row in at)
    async with gateway.session.get(
        f"{gateway.url}/v1/usage?start={datetime.now(UTC):%Y-%m-%d}", headers=head
    ) as answer:
        told = await answer.json()
    assert answer.status == 400 and "366" in told["error"]["message"], "the default end is the merchant's now"
    _, other = await merchant(gateway, "beside")
    assert near(ahead((await call(gateway, other))[1]["now"]), timedelta())


async def test_cycles_that_have_ended_are_due_until_they_are_turned_and_recorded(gateway: RunningGateway) -> None:
    merchant_id, key = await merchant(gateway, "due")
    plan = await gateway.accounts.create_plan(merchant_id, "P", 10**9, [], overage="block", cap_nano=None)
    customer = await gateway.accounts.create_customer(merchant_id, "test", limit_nano=0)
    await gateway.accounts.subscribe(customer, plan)
    await gateway.flusher.flush_once()
    _, shown = await call(gateway, key, {"advance_seconds": 40 * 86_400})
    assert (shown["status"], shown["turns_due"]) == ("advancing", 3), "its cycle, and two months"


async def test_the_command_reads_and_moves_it(gateway: RunningGateway) -> None:
    merchant_id, key = await merchant(gateway, "by-command")
    settings = gateway.context.settings

    async def run(*wanted: Any) -> str:
        out = io.StringIO()
        assert await asyncio.to_thread(command.main, settings, command.Wanted(*wanted), out) == 0
        return out.getvalue()

    assert f"{merchant_id} (by-command)" in await run(merchant_id)
    assert "ahead by 27 days, 0:00:00  ready" in await run(merchant_id, None, command.read_span("27d"))
    await asyncio.sleep(0.3)  # every process hears of it within a second
    assert (await call(gateway, key))[1]["offset_seconds"] == 27 * 86_400
    with pytest.raises(ConfigurationError, match="forward only"):
        await run(merchant_id, datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(ConfigurationError, match=r"name one with --merchant: .*by-command"):
        await run()
    with pytest.raises(ConfigurationError, match="no such merchant"):
        await run("mer_nobody")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2m", 120), ("12h", 43_200), ("30d", 2_592_000), ("1w", 604_800)]
)
async def test_a_span_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert command.read_span(text) == timedelta(seconds=seconds)
    for wrong in ("30", "d", "-1d", "1.5d", "1y", "1234567890s", "١d"):
        with pytest.raises(ValueError, match="is not a span"):
            command.read_span(wrong)
