"""Spend keys through a real gateway: what they refuse, in both dialects, and what they count."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from realtime_client import refused as refused_session
from realtime_client import talk
from spend_key_gateway import (  # noqa: F401
    CHAT,
    CLAUDE,
    COST_NANO,
    ROUTES,
    Reply,
    api,
    begun,
    call,
    ceiling_of,
    gateway_fixture,
    live,
    make,
    own_wallet,
    recorded,
    settled,
    shown,
)
from tests_support import events_of

from gateway.core.money import format_nano
from gateway.testing import steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


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
