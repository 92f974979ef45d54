"""Connections and customers: read, list, delete."""

from __future__ import annotations

import asyncio

from api_fixtures import Api, api_fixture  # noqa: F401

from gateway.core.money import NANO


async def test_the_object_under_every_name(api: Api) -> None:
    secret = api.customer.connection_secret
    shown = (await api.call("GET", f"/v1/connections/{api.customer.connection_id}")).body
    assert shown["connection_id"] == shown["customer_id"] == api.customer.connection_id
    assert (shown["connection_secret"], shown["reference_id"]) == (secret, "user-1")
    assert shown["wallet"] == {
        "balance": "0.0000000000",
        "phone": "",
        "email": "a@example.com",
        "first_name": "",
        "last_name": "",
        "autopay_enabled": False,
    }
    assert shown["customer"] == shown["contact"]
    assert shown["subscription"] is None
    for path in ("connections", "customers"):
        for name in (secret, "user-1"):
            assert (await api.call("GET", f"/v1/{path}/{name}")).body == shown


async def test_the_balance_is_live(api: Api) -> None:
    await api.wallets.credit(api.customer.wallet, "g", "prepaid", 3 * NANO, at_ms=1)
    await api.report("r-1", input_tokens=250_000)
    shown = (await api.call("GET", "/v1/customers/user-1")).body
    assert shown["wallet"]["balance"] == "2.5000000000"
    assert shown["has_lava_credit_balance"] is True
    assert shown["balances"] == {
        "cycle": "0.0000000000",
        "bundle": "0.0000000000",
        "prepaid": "2.5000000000",
        "overage": "0.0000000000",
        "held": "0.0000000000",
        "available": "1002.5000000000",
    }
    own = (await api.call("GET", f"/v1/connections/{api.merchant.self_connection_id}")).body
    assert own["balances"]["available"] is None


async def test_a_subscription_with_what_is_left(api: Api) -> None:
    empty = (await api.call("GET", "/v1/customers/user-1/subscription")).body
    assert empty == {"subscription": None}
    plan_id = await api.accounts.create_plan(
        api.merchant.merchant_id, "Pro", 25 * NANO, [], overage="charge", cap_nano=None
    )
    subscription_id = await api.accounts.subscribe(api.customer, plan_id)
    await api.report("r-1", input_tokens=5_000_000)
    shown = (await api.call("GET", "/v1/connections/user-1/subscription")).body["subscription"]
    assert shown["subscription_id"] == subscription_id
    assert shown["plan_id"] == shown["subscription_config_id"] == plan_id
    assert shown["credits"] == {
        "total_remaining": "15.0000000000",
        "cycle_remaining": "15.0000000000",
        "bundle_remaining": "0.0000000000",
    }
    assert shown["plan"]["included_credit"] == "25.0000000000"
    assert (shown["pending_change"], shown["auto_top_up_bundle_id"], shown["cancelled_at"]) == (None, None, None)
    customer = (await api.call("GET", "/v1/customers/user-1")).body
    assert customer["subscription"]["name"] == "Pro"
    assert customer["next_usage_reset"] == shown["cycle_end_at"]
    assert customer["previous_usage_reset"] == shown["cycle_start_at"]


async def test_the_list_has_customers_only_and_filters(api: Api) -> None:
    others = [(await api.new_customer(f"user-{n}")).connection_id for n in (2, 3)]
    first = (await api.call("GET", "/v1/connections", limit="2")).body
    assert [each["connection_id"] for each in first["data"]] == others[::-1]
    rest = (await api.call("GET", "/v1/customers", limit="2", cursor=first["next_cursor"])).body
    assert [each["customer_id"] for each in rest["data"]] == [api.customer.connection_id]
    assert rest["has_more"] is False
    named = (await api.call("GET", "/v1/connections", reference_id="user-3")).body
    assert [each["connection_id"] for each in named["data"]] == [others[1]]
    assert (await api.call("GET", "/v1/connections", reference_id="nobody")).body["data"] == []


async def test_a_deleted_connection_is_unusable_and_its_requests_stay(api: Api) -> None:
    plan_id = await api.accounts.create_plan(api.merchant.merchant_id, "P", NANO, [], overage="charge", cap_nano=None)
    await api.accounts.subscribe(api.customer, plan_id)
    await api.report("r-1", input_tokens=7)
    gone = await api.call("DELETE", "/v1/customers/user-1")
    assert gone.body == {"success": True, "id": api.customer.connection_id, "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/subscription")):
        assert (await api.call(method, f"/v1/connections/{api.customer.connection_id}{path}")).status == 404
    assert (await api.report("r-2", input_tokens=7)).status == 404
    assert (await api.balance()).status == "deleted"
    await api.flush()
    assert (await api.call("GET", "/v1/requests/r-1")).body["connection_id"] == api.customer.connection_id
    listed = (await api.call("GET", "/v1/requests", connection_id=api.customer.connection_id)).body
    assert [each["request_id"] for each in listed["data"]] == ["r-1"]
    again = await api.new_customer("user-1")
    assert (await api.call("GET", "/v1/customers/user-1")).body["customer_id"] == again.connection_id
    async with api.store.connection() as db:
        assert await db.fetchval("SELECT status FROM subscriptions") == "cancelled"


async def test_ones_own_connection_and_others_cannot_be_deleted(api: Api) -> None:
    own = await api.call("DELETE", f"/v1/connections/{api.merchant.self_connection_id}")
    assert own.status == 400
    stranger = await api.accounts.create_merchant("acc_2", "live", "Other")
    assert (await api.call("DELETE", "/v1/connections/user-1", key=stranger.secret_key)).status == 404
    assert (
        await api.call("GET", f"/v1/connections/{api.customer.connection_id}", key=stranger.secret_key)
    ).status == 404
    assert (await api.call("GET", "/v1/connections/user-1")).status == 200


async def test_redis_away_is_503_and_a_delete_changes_nothing(api: Api) -> None:
    await api.call("GET", "/v1/connections/user-1")
    await api.connection.close()
    await asyncio.sleep(0.05)
    for method, path in (
        ("GET", "/v1/connections"),
        ("GET", "/v1/connections/user-1"),
        ("DELETE", "/v1/customers/user-1"),
    ):
        reply = await api.call(method, path)
        assert (reply.status, reply.body["error"]["code"]) == (503, "ledger_unavailable")
    async with api.store.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM connections WHERE deleted_at IS NOT NULL") == 0


async def test_a_wallet_that_redis_lost_has_no_balance(api: Api) -> None:
    await api.forget_in_redis(f"*:w:{api.customer.wallet.wallet_id}")
    reply = await api.call("GET", "/v1/connections/user-1")
    assert (reply.status, reply.body["error"]["code"]) == (503, "wallet_unavailable")
