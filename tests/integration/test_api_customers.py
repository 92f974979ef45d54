"""Customers made and changed, under all names; what the unreleased SDK 6.0.1 reads of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from api_fixtures import Api
from shared_api import shared_api  # noqa: F401

from gateway.ledger.connection import LedgerAway

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADA = {
    "reference_id": "ada",
    "email": "ada@example.com",
    "phone": "+15550100",
    "name": "Ada King Lovelace",
    "metadata": {"tier": "gold", "seats": 3, "share": 0.25, "tags": ["a"], "none": None},
}
MISTAKES: list[tuple[Any, str]] = [
    ({"reference_id": "con_1"}, "reference_id"),
    ({"reference_id": ""}, "reference_id"),
    ({"email": "nobody"}, "email"),
    ({"email": "a@b" + "c" * 300}, "email"),
    ({"phone": 5}, "phone"),
    ({"name": "x" * 256}, "name"),
    ({"metadata": ["a"]}, "metadata"),
    ({"metadata": {"a": 2e-35}}, "metadata.a"),
    ({"metadata": {"a": "x" * 17_000}}, "metadata"),
]


async def test_a_customer_under_every_name(api: Api) -> None:
    made = await api.call("POST", "/v1/customers", ADA)
    shown = made.body
    assert made.status == 201
    assert shown["connection_id"] == shown["customer_id"]
    assert shown["connection_id"].startswith("con_")
    contact = {"phone": "+15550100", "email": "ada@example.com", "first_name": "Ada", "last_name": "King Lovelace"}
    assert shown["contact"] == shown["customer"] == contact
    assert shown["wallet"] == {**contact, "balance": "0.0000000000", "autopay_enabled": False}
    assert (shown["reference_id"], shown["metadata"], shown["subscription"]) == ("ada", ADA["metadata"], None)
    for path in ("customers", "connections"):
        assert (await api.call("GET", f"/v1/{path}/ada")).body == shown
    charged = await api.report("r-ada", connection_secret=shown["connection_secret"], input_tokens=7)
    assert charged.status == 200


async def test_the_same_reference_is_the_same_customer(api: Api) -> None:
    calls = (api.call("POST", "/v1/customers", {"reference_id": "twin", "name": f"T {n}"}) for n in range(6))
    replies = await asyncio.gather(*calls)
    assert {reply.status for reply in replies} == {201}
    assert len({reply.body["customer_id"] for reply in replies}) == 1
    nameless = [(await api.call("POST", "/v1/connections", body)).body for body in (None, {"reference_id": None})]
    assert nameless[0]["customer_id"] != nameless[1]["customer_id"]
    assert nameless[0]["contact"] == {"phone": "", "email": "", "first_name": "", "last_name": ""}


@pytest.mark.parametrize(("body", "field"), MISTAKES)
async def test_a_mistake_names_its_field(api: Api, body: Any, field: str) -> None:
    existing = api.customer.connection_id
    for method, path in (("POST", "/v1/customers"), ("PATCH", f"/v1/customers/{existing}")):
        refused = await api.call(method, path, body)
        assert (refused.status, refused.body["error"]["param"]) == (400, field)


async def test_a_change_sets_clears_and_leaves(api: Api) -> None:
    await api.call("POST", "/v1/customers", {**ADA, "reference_id": "grace"})
    renamed = (await api.call("PATCH", "/v1/customers/grace", {"name": "Grace", "reference_id": "hopper"})).body
    assert renamed["contact"]["first_name"] == "Grace"
    assert renamed["contact"]["last_name"] == ""
    assert (renamed["contact"]["email"], renamed["metadata"]) == (ADA["email"], ADA["metadata"])
    assert (await api.call("GET", "/v1/customers/grace")).status == 404
    cleared = (await api.call("PATCH", "/v1/connections/hopper", dict.fromkeys(ADA))).body
    assert (cleared["reference_id"], cleared["metadata"]) == (None, None)
    assert set(cleared["contact"].values()) == {""}
    assert (await api.call("PATCH", "/v1/customers/hopper", {})).status == 404
    assert api.announced[-1] == api.merchant.merchant_id


async def test_a_reference_belongs_to_one_customer_until_it_is_deleted(api: Api) -> None:
    for reference in ("one", "two"):
        await api.call("POST", "/v1/customers", {"reference_id": reference})
    taken = await api.call("PATCH", "/v1/customers/one", {"reference_id": "two"})
    assert (taken.status, taken.body["error"]["code"]) == (409, "reference_id_taken")
    assert taken.body["error"]["param"] == "reference_id"
    await api.call("DELETE", "/v1/customers/two")
    assert (await api.call("PATCH", "/v1/customers/one", {"reference_id": "two"})).status == 200


async def test_with_redis_away_there_is_no_customer_without_a_wallet(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> str:
        raise LedgerAway("away")

    with monkeypatch.context() as patched:
        patched.setattr(api.wallets, "open", away)
        refused = await api.call("POST", "/v1/customers", {"reference_id": "later"})
    assert refused.body["error"]["code"] == "ledger_unavailable"
    assert (await api.call("GET", "/v1/customers", reference_id="later")).body["data"] == []
    assert (await api.call("POST", "/v1/customers", {"reference_id": "later"})).status == 201


async def test_what_sdk_6_reads(api: Api) -> None:
    made = (await api.call("POST", "/v1/customers", {"email": "f@example.com", "name": "F Lex"})).body
    listed = (await api.call("GET", "/v1/flex/customers", limit="1")).body
    assert listed["has_more"] is True
    assert listed["data"] == [
        {
            "customer_profile_id": made["customer_id"],
            "email": "f@example.com",
            "display_name": "F Lex",
            "plan": None,
            "subscribed_at": None,
            "status": "active",
        }
    ]
    balance = (await api.call("GET", f"/v1/flex/customers/{made['customer_id']}/balance")).body
    assert (balance["balance"], balance["currency"]) == ("0.0000000000", "USD")


async def test_webhooks_hear_of_a_customer_that_comes_and_goes(api: Api) -> None:
    async with api.store.transaction() as db:
        await db.execute(
            "INSERT INTO webhooks (webhook_id, merchant_id, name, url) VALUES ('wh', $1, 'w', 'https://example.com')",
            api.merchant.merchant_id,
        )
    made = (await api.call("POST", "/v1/customers", {})).body["customer_id"]
    gone = await asyncio.gather(*(api.call("DELETE", f"/v1/customers/{made}") for _ in range(3)))
    assert sorted(reply.status for reply in gone) == [200, 404, 404]
    async with api.store.transaction() as db:
        told = await db.fetch("SELECT event FROM webhook_deliveries WHERE connection_id = $1 ORDER BY sequence", made)
        await db.execute("UPDATE webhooks SET deleted_at = now()")
    assert [row["event"] for row in told] == ["connection.created", "connection.deleted"]


async def test_the_merchants_own_connection_takes_no_reference_from_a_customer(api: Api) -> None:
    own = f"/v1/customers/{api.merchant.self_connection_id}"
    refused = await api.call("PATCH", own, {"reference_id": "mine"})
    assert (refused.status, refused.body["error"]["param"]) == (400, "reference_id")
    assert (await api.call("PATCH", own, {"reference_id": None, "name": "Shop"})).status == 200
    assert (await api.call("POST", "/v1/customers", {"reference_id": "mine"})).status == 201
