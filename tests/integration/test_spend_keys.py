"""Spend keys through a real gateway: what they refuse, in both dialects, and what they count."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from realtime_client import refused as refused_session
from realtime_client import talk
from running import RunningGateway, running_gateway
from tests_support import events_of

from gateway.billing import spend_keys
from gateway.billing.restore import Restorer
from gateway.core.money import format_nano
from gateway.ledger.keys import Keys
from gateway.ledger.spending import DAY_MS, SpendKey
from gateway.ledger.wallets import now_ms
from gateway.local.fake.directive import Directive
from gateway.testing import FakeProvider, steering_header
from gateway.worker.reaper import Reaper

pytestmark = pytest.mark.asyncio(loop_scope="module")

COST_NANO = 30 * 150 + 10 * 600
"""Of gpt-4o-mini, for the usage that the fake provider tells."""
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}
CLAUDE = {**CHAT, "model": "claude-3-5-haiku-20241022"}
ROUTES = {"openai": ("/v1/chat/completions", CHAT), "anthropic": ("/v1/messages", CLAUDE)}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Reply(NamedTuple):
    status: int
    body: Any
    headers: Any


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    answering = FakeProvider(Directive(prompt_tokens=30, completion_tokens=10, chunks=5))
    started = running_gateway(*engines, answering, provider_keys={"openai": "sk-of-installation"})
    async with answering, started as running:
        yield running


async def api(gateway: RunningGateway, method: str, path: str, body: Any = None, key: str = "") -> Reply:
    headers = {"Authorization": f"Bearer {key or gateway.merchant.secret_key}"}
    async with gateway.session.request(method, gateway.url + path, json=body, headers=headers) as answer:
        return Reply(answer.status, await answer.json(), answer.headers)


async def make(gateway: RunningGateway, **fields: Any) -> dict[str, Any]:
    made = await api(gateway, "POST", "/v1/spend_keys", {"name": "key", **fields})
    assert made.status == 201, made.body
    return made.body


async def shown(gateway: RunningGateway, key: dict[str, Any]) -> dict[str, Any]:
    return (await api(gateway, "GET", f"/v1/spend_keys/{key['spend_key_id']}")).body


async def call(gateway: RunningGateway, key: dict[str, Any], shape: str = "openai", **more: Any) -> Reply:
    path, body = ROUTES[shape]
    headers = {"Authorization": f"Bearer {key['key']}", **more.pop("headers", {})}
    url = gateway.url + more.pop("path", path)
    async with gateway.session.post(url, json={**body, **more}, headers=headers) as answer:
        return Reply(answer.status, await answer.json(), answer.headers)


async def settled(gateway: RunningGateway, key: dict[str, Any]) -> dict[str, Any]:
    """The key once none of its calls is in flight."""
    async with asyncio.timeout(5):
        while (await live(gateway, key)).spend_calls:
            await asyncio.sleep(0.01)
    return await shown(gateway, key)


class Live(NamedTuple):
    spend_calls: int
    spend_held: int


async def live(gateway: RunningGateway, key: dict[str, Any]) -> Live:
    name = await counters_of(gateway, key)
    calls, held = await gateway.context.wallets._connection.command("HMGET", name, "calls", "held")
    return Live(int(calls or 0), int(held or 0))


async def counters_of(gateway: RunningGateway, key: dict[str, Any]) -> str:
    async with gateway.context.store.connection() as db:
        shard = await db.fetchval("SELECT shard FROM wallets WHERE wallet_id = $1", key["wallet_id"])
    return Keys().spend(shard, key["spend_key_id"])


def refused(reply: Reply, shape: str, status: int, code: str, *words: str) -> None:
    """The error in the dialect's own form, which the vendor's client reads."""
    error = reply.body["error"]
    assert (reply.status, error["code"]) == (status, code), reply.body
    assert all(word in error["message"] for word in words), error["message"]
    expected = TYPES.get(status, {"openai": "insufficient_quota", "anthropic": "billing_error"}[shape])
    assert error["type"] == expected
    assert (reply.body.get("type") == "error") is (shape == "anthropic")


async def test_a_call_spends_what_it_cost_the_merchant(gateway):
    key = await make(gateway, spend_limit={"amount": "1.00", "cycle": "monthly"})
    before = (await gateway.context.wallets.balances([await own_wallet(gateway)]))[0]
    assert (await call(gateway, key)).status == 200
    after = await settled(gateway, key)
    assert after["current_spend"] == after["total_spend"] == format_nano(COST_NANO)
    assert (after["current_requests"], after["total_requests"]) == (1, 1)
    assert after["last_used_at"] >= after["created_at"]
    balance = (await gateway.context.wallets.balances([await own_wallet(gateway)]))[0]
    assert (balance.total_nano, balance.held_nano) == (before.total_nano, 0)
    (row,) = await gateway.rows("spend_key_id = $1", key["spend_key_id"])
    assert (row["billing_mode"], row["charge_nano"], row["cost_nano"]) == ("merchant", 0, COST_NANO)


async def own_wallet(gateway: RunningGateway) -> Any:
    merchant = await gateway.context.principals.merchant(gateway.merchant.secret_key)
    return (await gateway.context.principals.customer(merchant, merchant.self_connection_id)).wallet


async def test_a_key_of_a_customers_wallet_spends_what_the_customer_is_charged(gateway):
    customer = await gateway.customer()
    by_meter = await make(gateway, connection_id=customer.connection_id, meter_slug="tokens")
    by_cost = await make(gateway, wallet_id=customer.wallet.wallet_id)
    assert by_meter["wallet_id"] == by_cost["wallet_id"] == customer.wallet.wallet_id
    for key in (by_meter, by_cost):
        assert (await call(gateway, key)).status == 200
    charged = [(await settled(gateway, key))["total_spend"] for key in (by_meter, by_cost)]
    assert charged == [format_nano(40 * 20_000), format_nano(COST_NANO)]
    assert (await gateway.balance(customer)).cycle_nano == 25 * 10**9 - 40 * 20_000 - COST_NANO


async def test_a_key_ends_with_the_customer_whose_wallet_it_is_for(gateway):
    customer = await gateway.customer()
    key = await make(gateway, customer_id=customer.connection_id)
    assert (await call(gateway, key)).status == 200
    assert (await api(gateway, "DELETE", f"/v1/customers/{customer.connection_id}")).status == 200
    refused(await call(gateway, key), "openai", 401, "unauthorized", "spend key")


@pytest.mark.parametrize("shape", ["openai", "anthropic"])
async def test_every_refusal_of_a_key(gateway, shape):
    other = {"openai": "anthropic", "anthropic": "openai"}[shape]
    of_shape = {"request_shape": shape}
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    limit = {"amount": "0.000001", "cycle": "daily"}
    refusals = [
        ({**of_shape, "status": "paused"}, 403, "spend_key_inactive", ("paused",)),
        ({**of_shape, "expires_at": past}, 403, "spend_key_inactive", ("expired",)),
        ({"request_shape": other}, 403, "spend_key_not_allowed", (shape, other)),
        ({**of_shape, "allowed_models": ["gpt-4o"]}, 403, "spend_key_not_allowed", (ROUTES[shape][1]["model"],)),
        ({**of_shape, "allowed_providers": ["groq"]}, 403, "spend_key_not_allowed", (shape,)),
        ({**of_shape, "spend_limit": limit}, 402, "spend_limit_exceeded", ("Service key spend limit exceeded.",)),
        (
            {**of_shape, "request_limit": {"count": 0, "cycle": "total"}},
            402,
            "spend_limit_exceeded",
            ("Service key request limit exceeded.",),
        ),
    ]
    sent = gateway.provider.request_count
    for fields, status, code, words in refusals:
        refused(await call(gateway, await make(gateway, **fields), shape), shape, status, code, *words)
    assert gateway.provider.request_count == sent
    limited = await make(gateway, **of_shape, rate_limit={"rpm": 1})
    assert (await call(gateway, limited, shape)).status == 200
    throttled = await call(gateway, limited, shape)
    refused(throttled, shape, 429, "too_many_requests")
    assert 0 < int(throttled.headers["Retry-After"]) <= 60


async def test_what_a_key_may_ask_for_holds_on_every_route(gateway):
    key = await make(gateway, allowed_models=["openai/gpt-4o-mini"], allowed_providers=["openai", "groq"])
    assert (await call(gateway, key)).status == 200
    assert (await call(gateway, key, model="openai/gpt-4o-mini")).status == 200
    target = "https://api.openai.com/v1/chat/completions"
    forward, rewrite = f"/v1/forward?u={target}", "/v1/rewrite/openai/https://api.anthropic.com/v1/messages"
    assert (await call(gateway, key, path=forward)).status == 200
    assert (await call(gateway, key, path=forward, model="gpt-4o")).body["error"]["code"] == "spend_key_not_allowed"
    anthropic = await call(gateway, key, path=rewrite, model="claude-3-5-haiku-20241022")
    refused(anthropic, "openai", 403, "spend_key_not_allowed", "provider anthropic")
    chain = {"x-lava-fallbacks": '["groq/llama-3.3-70b-versatile"]'}
    refused(await call(gateway, key, headers=chain), "openai", 403, "spend_key_not_allowed", "x-lava-fallbacks[0]")
    shape = await call(gateway, key, path="/v1/forward?u=https://api.anthropic.com/v1/messages", **CLAUDE)
    refused(shape, "anthropic", 403, "spend_key_not_allowed", "openai")
    nameless = {"Authorization": f"Bearer {key['key']}"}
    async with gateway.session.get(
        f"{gateway.url}/v1/forward?u=https://api.openai.com/v1/models", headers=nameless
    ) as at:
        assert at.status == 403
    async with gateway.session.get(f"{gateway.url}/v1/models", headers=nameless) as answer:
        assert [each["id"] for each in (await answer.json())["data"]] == ["gpt-4o-mini"]


async def test_an_unpriced_model_cannot_pass_a_limit_of_spending(gateway):
    unknown = "openai/a-model-without-a-price"
    limited = await make(gateway, spend_limit={"amount": "1", "cycle": "total"})
    assert (await call(gateway, limited, model=unknown)).body["error"]["code"] == "forward_model_not_supported"
    assert (await call(gateway, await make(gateway), model=unknown)).status == 200


async def test_parallel_calls_do_not_pass_a_limit_of_spending(gateway):
    """Forty at once where there is money for ten: those in flight count, too. (A hundred in three processes:
    test_concurrency.py.)"""
    key = await make(gateway, spend_limit={"amount": "1", "cycle": "daily"})
    one = await ceiling_of(gateway, key)
    limit_nano = COST_NANO + 10 * one
    change = {"spend_limit": {"amount": format_nano(limit_nano)[:-1], "cycle": "daily"}}
    assert (await api(gateway, "PUT", f"/v1/spend_keys/{key['spend_key_id']}", change)).status == 200
    slow = steering_header(delay_ms=300)
    replies = await asyncio.gather(*(call(gateway, key, headers=slow) for _ in range(40)))
    assert Counter(each.status for each in replies) == {200: 10, 402: 30}
    told = {each.body["error"]["message"] for each in replies if each.status == 402}
    assert told == {"Service key spend limit exceeded."}
    assert (await settled(gateway, key))["current_spend"] == format_nano(11 * COST_NANO)
    assert (await live(gateway, key)).spend_held == 0
    await gateway.flusher.flush_once()
    assert await recorded(gateway, key) == (11 * COST_NANO, 11)


async def ceiling_of(gateway: RunningGateway, key: dict[str, Any]) -> int:
    """What is held for one call, which is made."""
    under_way, held = await begun(gateway, key, steering_header(delay_ms=150))
    await under_way
    await settled(gateway, key)
    return held.spend_held


async def begun(
    gateway: RunningGateway, key: dict[str, Any], steering: dict[str, str]
) -> tuple[asyncio.Future[Reply], Live]:
    """A call that is under way, and what is held for it."""
    under_way = asyncio.ensure_future(call(gateway, key, headers=steering))
    async with asyncio.timeout(5):
        while not (held := await live(gateway, key)).spend_calls:
            await asyncio.sleep(0.005)
    return under_way, held


async def recorded(gateway: RunningGateway, key: dict[str, Any]) -> tuple[int, int]:
    async with gateway.context.store.connection() as db:
        row = await db.fetchrow(
            "SELECT sum(spent_nano)::bigint AS nano, sum(requests)::bigint AS requests FROM spend_key_days "
            "WHERE spend_key_id = $1",
            key["spend_key_id"],
        )
    return row["nano"], row["requests"]


async def test_a_limit_of_requests_counts_those_in_flight(gateway):
    key = await make(gateway, request_limit={"count": 3, "cycle": "weekly"})
    slow = steering_header(delay_ms=200)
    replies = await asyncio.gather(*(call(gateway, key, headers=slow) for _ in range(10)))
    assert Counter(each.status for each in replies) == {200: 3, 402: 7}
    assert (await settled(gateway, key))["current_requests"] == 3
    gone = steering_header(fault="status:500")
    change = await api(
        gateway, "PUT", f"/v1/spend_keys/{key['spend_key_id']}", {"request_limit": {"count": 4, "cycle": "weekly"}}
    )
    assert change.body["request_limit"] == {"count": 4, "cycle": "weekly"}
    assert (await call(gateway, key, headers=gone)).status == 500
    assert (await call(gateway, key)).status == 402


async def test_a_burst_is_what_may_come_at_once(gateway):
    key = await make(gateway, rate_limit={"rpm": 60, "burst": 2})
    replies = await asyncio.gather(*(call(gateway, key) for _ in range(6)))
    assert Counter(each.status for each in replies)[200] == 2


async def test_a_stream_ends_where_the_key_is_spent(gateway):
    key = await make(gateway, spend_limit={"amount": "0.004", "cycle": "total"})
    long = steering_header(chunks=4_000, completion_tokens=20_000)
    body = {**CHAT, "stream": True, "max_tokens": 30_000, "model": "gpt-4o-mini"}
    headers = {"Authorization": f"Bearer {key['key']}", **long}
    async with gateway.session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 200
        (told,) = [each["error"] for each in events_of(await answer.read()) if "error" in each]
    assert (told["code"], told["message"]) == ("spend_limit_exceeded", "Service key spend limit exceeded.")
    spent = await settled(gateway, key)
    assert 0.001 < float(spent["total_spend"]) <= 0.004


async def test_a_realtime_session_is_held_to_its_key(gateway):
    for fields, status in (({"request_shape": "anthropic"}, 403), ({"allowed_models": ["gpt-4o"]}, 403)):
        key = await make(gateway, **fields)
        assert (await refused_session(gateway, key["key"]))[0] == status
    key = await make(gateway, spend_limit={"amount": "5", "cycle": "total"})
    path = f"/v1/spend_keys/{key['spend_key_id']}"
    async with talk(gateway, key["key"]) as one:
        usage = (await one.ask("hello"))["response"]["usage"]
        assert usage["total_tokens"]
        await api(gateway, "PUT", path, {"status": "paused"})
        await one.say("response.create")
        code, _ = await one.end()
    assert code == 1008
    assert one.heard[-1]["error"]["code"] == "spend_key_inactive"
    async with asyncio.timeout(5):
        while (await live(gateway, key)).spend_held:
            await asyncio.sleep(0.01)
    assert 0 < float((await shown(gateway, key))["total_spend"]) < 5


async def test_what_is_rotated_paused_or_revoked_works_no_more(gateway):
    key = await make(gateway, spend_limit={"amount": "1", "cycle": "total"})
    path = f"/v1/spend_keys/{key['spend_key_id']}"
    assert (await call(gateway, key)).status == 200
    rotated = (await api(gateway, "POST", path + "/rotate")).body
    assert rotated["key"] != key["key"]
    assert rotated["total_spend"] == format_nano(COST_NANO)
    assert (await call(gateway, key)).status == 401
    assert (await call(gateway, rotated)).status == 200
    await api(gateway, "PUT", path, {"status": "paused"})
    assert (await call(gateway, rotated)).body["error"]["code"] == "spend_key_inactive"
    await api(gateway, "PUT", path, {"status": "active"})
    under_way, _ = await begun(gateway, rotated, steering_header(delay_ms=200))
    assert (await api(gateway, "DELETE", path)).body["success"] is True
    assert (await call(gateway, rotated)).status == 401
    assert (await under_way).status == 200
    rows = await gateway.rows("spend_key_id = $1", key["spend_key_id"])
    assert len(rows) == 3
    for method, again in (("DELETE", path), ("GET", path), ("POST", path + "/rotate"), ("PUT", path)):
        assert (await api(gateway, method, again, {} if method == "PUT" else None)).status == 404


async def test_counters_that_redis_lost_are_opened_from_the_record(gateway):
    key = await make(gateway, spend_limit={"amount": "1", "cycle": "total"})
    assert (await call(gateway, key)).status == 200
    under_way, held = await begun(gateway, key, steering_header(delay_ms=400))
    await gateway.context.wallets._connection.command("DEL", await counters_of(gateway, key))
    asked = asyncio.ensure_future(call(gateway, key))
    await asyncio.sleep(0.1)  # it waits for the record to have the first call
    assert not asked.done()
    await gateway.flusher.flush_once()
    assert (await asked).status == 200
    assert (await live(gateway, key)) == held
    await under_way
    after = await settled(gateway, key)
    assert (after["total_requests"], (await live(gateway, key)).spend_held) == (3, 0)
    await gateway.flusher.flush_once()
    assert (await recorded(gateway, key))[1] == 3


async def test_calls_that_wait_for_counters_wait_for_one_opening(gateway, monkeypatch):
    keys = [await make(gateway) for _ in range(4)]
    assert [(await call(gateway, key)).status for key in keys] == [200] * 4
    for key in keys:
        await settled(gateway, key)
        await gateway.context.wallets._connection.command("DEL", await counters_of(gateway, key))
    counters, made = gateway.parts.spend_counters, Counter()

    def counting(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: made.update([name]) or real(*given, **named))

    counting(counters, "_sums")
    counting(counters._recovery, "open_holds")
    counting(counters._recovery, "open_key")
    asked = asyncio.gather(*(call(gateway, key) for key in keys * 10))
    async with asyncio.timeout(2):
        while len(counters._openings) < len(keys):
            await asyncio.sleep(0.005)
    await gateway.flusher.flush_once()
    assert Counter(each.status for each in await asked) == {200: 40}
    assert (made["_sums"], made["open_key"]) == (4, 4)
    assert made["open_holds"] <= 2  # of all keys at once, or with those that came too late for the first
    assert [(await settled(gateway, key))["total_requests"] for key in keys] == [11] * 4
    assert not counters._openings
    assert not counters._looks


async def test_counters_opened_at_midnight_are_of_the_day_that_was_looked_up(gateway, monkeypatch):
    key = await make(gateway, spend_limit={"amount": "1", "cycle": "daily"})
    assert (await call(gateway, key)).status == 200
    await settled(gateway, key)
    await gateway.flusher.flush_once()
    name, connection = await counters_of(gateway, key), gateway.context.wallets._connection
    await connection.command("DEL", name)
    (at_ms, of_key), spend = (now_ms(), await spend_of(gateway, key)), gateway.parts.spend_counters
    hours = iter([at_ms])
    monkeypatch.setattr(spend_keys, "now_ms", lambda: next(hours, at_ms + DAY_MS))
    await spend.open(await own_wallet(gateway), of_key)
    tomorrow = of_key.cycles(at_ms + DAY_MS)
    found = await spend._recovery.spend_counters((await own_wallet(gateway)).shard, of_key.spend_key_id, tomorrow)
    assert (found.spent["daily"].nano, found.spent["total"].nano) == (0, COST_NANO)
    await connection.command("DEL", name)
    hours = iter([at_ms])
    read = await spend.read((await own_wallet(gateway)).shard, of_key)
    assert read.spent["daily"].nano == COST_NANO  # today's, whole


async def spend_of(gateway: RunningGateway, key: dict[str, Any]) -> SpendKey:
    spend = (await gateway.context.principals.principal(key["key"])).spend
    assert spend is not None
    return spend


async def test_what_ends_while_the_counters_are_lost_is_counted_once(gateway):
    key = await make(gateway)
    assert (await call(gateway, key)).status == 200
    name, connection = await counters_of(gateway, key), gateway.context.wallets._connection
    under_way, _ = await begun(gateway, key, steering_header(delay_ms=200))
    await gateway.flusher.flush_once()
    await connection.command("DEL", name)
    await under_way
    async with asyncio.timeout(2):
        while not await connection.command("EXISTS", name):
            await asyncio.sleep(0.01)
    assert (await shown(gateway, key))["total_requests"] == 1  # as recorded so far
    asked = asyncio.ensure_future(call(gateway, key))
    await asyncio.sleep(0.05)
    await gateway.flusher.flush_once()
    assert (await asked).status == 200
    assert (await settled(gateway, key))["total_requests"] == 3


async def test_a_wallet_that_came_back_older_takes_its_keys_counters_from_the_record(gateway):
    customer = await gateway.customer()
    key = await make(gateway, connection_id=customer.connection_id, meter_slug="tokens")
    assert (await call(gateway, key)).status == 200
    await settled(gateway, key)
    await gateway.flusher.flush_once()
    wallet, connection, name = customer.wallet, gateway.parts.ledger, await counters_of(gateway, key)
    settings = gateway.context.settings
    restorer = Restorer(
        gateway.context.store,
        connection,
        Keys(),
        shards=settings.ledger_shards,
        call_ttl_s=settings.settled_record_ttl_s,
        report_ttl_s=settings.report_record_ttl_s,
    )
    await connection.command("HSET", name, "st", 0, "nt", 0)
    await restorer.recovery.mark(wallet.shard, [(wallet.wallet_id, 10**9)], whatever=True)
    assert (await call(gateway, key)).status == 503
    await restorer.restore_once()
    assert await connection.command("EXISTS", name) == 0
    assert (await call(gateway, key)).status == 200
    assert (await settled(gateway, key))["total_spend"] == format_nano(2 * 40 * 20_000)


async def test_the_hold_of_a_dead_gateway_is_counted_for_its_key(gateway):
    key = await make(gateway, spend_limit={"amount": "1", "cycle": "total"})
    under_way, _ = await begun(gateway, key, steering_header(delay_ms=300))
    (name,) = [each for each in gateway.parts.live if each.principal.spend.spend_key_id == key["spend_key_id"]]
    wallet, keys = name.principal.wallet, Keys()
    hold = keys.hold(wallet.shard, wallet.merchant_id, name.request_id)
    await gateway.parts.ledger.command("ZADD", keys.holds(wallet.shard), 1, hold)
    reaper = Reaper(gateway.parts.ledger, keys, gateway.parts.wallets, shards=wallet.shard + 1, grace_s=0)
    assert await reaper.reap_once() == 1
    assert await live(gateway, key) == (0, 0)
    assert (await shown(gateway, key))["total_requests"] == 1
    await under_way  # it was not dead: its settlement comes late
    async with asyncio.timeout(5):
        while (after := await shown(gateway, key))["total_spend"] == format_nano(0):
            await asyncio.sleep(0.01)
    assert (after["total_spend"], after["total_requests"]) == (format_nano(COST_NANO), 1)
    await gateway.flusher.flush_once()
    assert await recorded(gateway, key) == (COST_NANO, 1)


async def test_each_cycle_counts_anew(gateway):
    key = await make(gateway, spend_limit={"amount": "1", "cycle": "daily"})
    assert (await call(gateway, key)).status == 200
    await settled(gateway, key)
    merchant_id = gateway.merchant.merchant_id
    async with gateway.context.store.transaction() as db:
        await db.execute(
            "INSERT INTO test_clocks (merchant_id, offset_us) VALUES ($1, $2)", merchant_id, 86_400_000_000
        )
    await gateway.context.principals.changed(merchant_id)
    assert (await shown(gateway, key))["current_spend"] == format_nano(0)
    assert (await call(gateway, key)).status == 200
    after = await settled(gateway, key)
    assert (after["current_spend"], after["total_spend"]) == (format_nano(COST_NANO), format_nano(2 * COST_NANO))


async def test_another_merchant_sees_and_changes_nothing(gateway):
    key = await make(gateway)
    other = await gateway.accounts.create_merchant("other", "test", "Other")
    path = f"/v1/spend_keys/{key['spend_key_id']}"
    for method, at, body in (
        ("GET", path, None),
        ("PUT", path, {"status": "paused"}),
        ("DELETE", path, None),
        ("POST", path + "/rotate", None),
    ):
        assert (await api(gateway, method, at, body, other.secret_key)).status == 404
    assert (await api(gateway, "GET", "/v1/spend_keys", key=other.secret_key)).body["data"] == []
    taken = {"name": "x", "wallet_id": key["wallet_id"]}
    assert (await api(gateway, "POST", "/v1/spend_keys", taken, other.secret_key)).status == 404
    assert (await call(gateway, key)).status == 200


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("name", {}),
        ("name", {"name": "x" * 256}),
        ("status", {"name": "x", "status": "revoked"}),
        ("allowed_models", {"name": "x", "allowed_models": []}),
        ("allowed_providers[1]", {"name": "x", "allowed_providers": ["openai", "OpenAI"]}),
        ("spend_limit.amount", {"name": "x", "spend_limit": {"amount": "-1", "cycle": "daily"}}),
        ("spend_limit.cycle", {"name": "x", "spend_limit": {"amount": "1", "cycle": "hourly"}}),
        ("request_limit.count", {"name": "x", "request_limit": {"count": 1.5, "cycle": "daily"}}),
        ("rate_limit.rpm", {"name": "x", "rate_limit": {"rpm": 0}}),
        ("expires_at", {"name": "x", "expires_at": "tomorrow"}),
        ("expires_at", {"name": "x", "expires_at": "0001-01-01T00:00:00+14:00"}),
        ("meter_slug", {"name": "x", "meter_slug": "tokens"}),
    ],
)
async def test_a_bad_value_is_refused_by_its_name(gateway, field, body):
    reply = await api(gateway, "POST", "/v1/spend_keys", body)
    assert (reply.status, reply.body["error"]["param"]) == (400, field), reply.body


async def test_what_is_not_known_is_told_of_the_field_that_named_it(gateway):
    customer = await gateway.customer()
    for field in ("connection_secret", "customer_id", "meter_id"):
        whose = {"customer_id": customer.connection_id} if field == "meter_id" else {}
        reply = await api(gateway, "POST", "/v1/spend_keys", {"name": "x", **whose, field: "nobody"})
        assert (reply.status, reply.body["error"]["param"]) == (404, field), reply.body
    body = {"allowed_providers": ["nobody"]}
    key = await make(gateway)
    assert (await api(gateway, "PUT", f"/v1/spend_keys/{key['spend_key_id']}", body)).status == 400


async def test_pages_and_the_older_path(gateway):
    made = [(await make(gateway, name=f"page {number}"))["spend_key_id"] for number in range(3)]
    first = (await api(gateway, "GET", "/v1/manage/spend_keys?limit=2")).body
    assert [each["spend_key_id"] for each in first["data"]] == made[:0:-1]
    second = (await api(gateway, "GET", f"/v1/spend_keys?limit=1&cursor={first['next_cursor']}")).body
    assert second["data"][0]["spend_key_id"] == made[0]
    assert "key" not in second["data"][0]


async def test_no_secret_is_stored_in_clear(gateway):
    key = await make(gateway)
    async with gateway.context.store.connection() as db:
        rows = [str(tuple(row)) for row in await db.fetch("SELECT * FROM spend_keys")]
    assert not any(key["key"] in row for row in rows)
    assert key["key_preview"] == key["key"][:16] + "****"
