"""Subscriptions begun on free plans, listed, changed and cancelled, under the names of all eras."""

from __future__ import annotations

from typing import Any

import pytest
from api_fixtures import Api
from shared_api import shared_api  # noqa: F401

from gateway.billing.accounts import NewConnection

pytestmark = pytest.mark.asyncio(loop_scope="module")

PACK = {"name": "Pack", "cost": "9.00", "credit_amount": "10.00"}
ZERO = "0.0000000000"


async def plan(api: Api, amount: str, **fields: Any) -> dict[str, Any]:
    made = await api.call("POST", "/v1/plans", {"name": f"Plan {amount}", "period_amount": amount, **fields})
    assert made.status == 201, made.body
    body: dict[str, Any] = made.body
    return body


async def subscribed(api: Api, reference: str, amount: str, **fields: Any) -> tuple[NewConnection, dict[str, Any], str]:
    """A customer with a card on a new plan: the customer, the plan, the subscription's id."""
    customer, bought = await api.new_customer(reference), await plan(api, amount, **fields)
    return customer, bought, await api.accounts.subscribe(customer, bought["plan_id"])


async def test_a_free_plan_is_begun_and_the_same_call_finds_it(api: Api) -> None:
    customer, free = await api.new_customer("free"), await plan(api, "0", billing_interval="week")
    asked = {"customer_id": "free", "plan_id": free["plan_id"]}
    made = await api.call("POST", "/v1/subscriptions", asked)
    shown = made.body["subscription"]
    assert made.status == 201
    assert shown["plan_id"] == shown["subscription_config_id"] == free["plan_id"]
    assert (shown["status"], shown["cancelled_at"], shown["pending_change"]) == ("active", None, None)
    assert shown["credits"] == {"total_remaining": ZERO, "cycle_remaining": ZERO, "bundle_remaining": ZERO}
    assert shown["plan"] == {
        "name": "Plan 0",
        "period_amount": ZERO,
        "included_credit": ZERO,
        "billing_interval": "week",
        "rollover_type": "none",
        "bundle_rollover_type": "full",
    }
    older = {"connection_secret": customer.connection_secret, "subscription_config_id": free["plan_id"]}
    assert (await api.call("POST", "/v1/subscriptions", older)).body["subscription"] == shown
    assert (await api.call("GET", "/v1/customers/free/subscription")).body["subscription"] == shown
    other = await plan(api, "0")
    refused = await api.call("POST", "/v1/subscriptions", {"customer_id": "free", "plan_id": other["plan_id"]})
    assert (refused.status, refused.body["error"]["code"]) == (409, "already_subscribed")


async def test_what_has_to_be_paid_for_is_left_to_a_checkout(api: Api) -> None:
    paid, dear = await plan(api, "5"), await plan(api, "6")
    refused = await api.call("POST", "/v1/subscriptions", {"customer_id": "user-1", "plan_id": paid["plan_id"]})
    assert (refused.status, refused.body["error"]["param"]) == (400, "plan_id")
    assert "checkout_sessions" in refused.body["error"]["message"]
    subscription_id = await api.accounts.subscribe(await api.new_customer("payer"), paid["plan_id"])
    upgrade = {"subscription_config_id": dear["plan_id"]}
    refused = await api.call("PATCH", f"/v1/subscriptions/{subscription_id}", upgrade)
    assert (refused.status, refused.body["error"]["param"]) == (400, "subscription_config_id")
    yearly = await plan(api, "61", billing_interval="year")  # dearer than 5 a month
    refused = await api.call("PATCH", f"/v1/subscriptions/{subscription_id}", {"plan_id": yearly["plan_id"]})
    assert refused.status == 400


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "plan_id"),
        ({"plan_id": "subconf_none"}, 400, "customer_id"),
        ({"plan_id": "a", "subscription_config_id": "b", "customer_id": "user-1"}, 400, "subscription_config_id"),
        ({"plan_id": "subconf_none", "customer_id": "user-1"}, 404, "plan_id"),
        ({"plan_id": "subconf_none", "connection_id": "con_none"}, 404, "connection_id"),
    ],
)
async def test_a_mistake_names_its_field(api: Api, body: dict[str, Any], status: int, param: str) -> None:
    refused = await api.call("POST", "/v1/subscriptions", body)
    assert (refused.status, refused.body["error"]["param"]) == (status, param)


async def test_lists_by_customer_and_status(api: Api) -> None:
    customer, _, name = await subscribed(api, "lister", "12")
    listed = (await api.call("GET", "/v1/subscriptions", customer_id="lister")).body
    (shown,) = listed["data"]
    assert (shown["subscription_id"], shown["connection_id"]) == (name, customer.connection_id)
    assert shown["customer_id"] == customer.connection_id
    assert shown["customer"]["email"] == "a@example.com"
    assert shown["credits"]["cycle_remaining"] == "12.0000000000"
    assert (await api.call("GET", f"/v1/subscriptions/{name}")).body == shown
    await api.call("DELETE", "/v1/customers/lister")
    for status, found in (("active", []), ("cancelled", [name]), ("all", [name])):
        rows = await api.call("GET", "/v1/subscriptions", status=status, limit="100")
        assert [each["subscription_id"] for each in rows.body["data"] if each["subscription_id"] == name] == found
    ended = (await api.call("GET", f"/v1/subscriptions/{name}")).body
    assert (ended["status"], ended["credits"]["total_remaining"]) == ("cancelled", ZERO)
    assert ended["cancelled_at"] is not None
    assert (await api.call("GET", "/v1/subscriptions", status="paused")).body["error"]["param"] == "status"
    assert (await api.call("GET", "/v1/subscriptions", connection_id="nobody")).status == 404


async def test_pages_go_on_to_the_end(api: Api) -> None:
    names = [(await subscribed(api, f"paged-{n}", "1"))[2] for n in range(3)]
    seen: list[str] = []
    page = (await api.call("GET", "/v1/subscriptions", limit="2")).body
    while True:
        seen += [each["subscription_id"] for each in page["data"]]
        if "next_cursor" not in page:
            break
        page = (await api.call("GET", "/v1/subscriptions", limit="2", cursor=page["next_cursor"])).body
    assert seen[:3] == names[::-1]
    assert len(seen) == len(set(seen))


async def test_the_bundle_of_auto_top_up_is_one_of_the_plan(api: Api) -> None:
    _, bought, name = await subscribed(api, "topper", "3", credit_bundles=[PACK])
    stranger = (await plan(api, "3", credit_bundles=[PACK]))["credit_bundles"][0]["credit_bundle_id"]
    path, bundle = f"/v1/subscriptions/{name}", bought["credit_bundles"][0]["credit_bundle_id"]
    chosen = (await api.call("PATCH", path, {"auto_top_up_bundle_id": bundle})).body
    assert (chosen["success"], chosen["subscription"]["auto_top_up_bundle_id"]) == (True, bundle)
    for wrong in (stranger, "cb_none"):
        refused = await api.call("PATCH", path, {"auto_top_up_bundle_id": wrong})
        assert (refused.status, refused.body["error"]["param"]) == (404, "auto_top_up_bundle_id")
    both = {"auto_top_up_bundle_id": bundle, "plan_id": bought["plan_id"]}
    assert (await api.call("PATCH", path, both)).status == 400
    assert (await api.call("PATCH", path, {})).body["subscription"]["auto_top_up_bundle_id"] == bundle
    none = (await api.call("PATCH", path, {"auto_top_up_bundle_id": None})).body
    assert none["subscription"]["auto_top_up_bundle_id"] is None


async def test_a_cheaper_plan_follows_at_the_cycles_end_and_is_taken_back(api: Api) -> None:
    _, bought, name = await subscribed(api, "saver", "20")
    cheap, path = await plan(api, "10"), f"/v1/subscriptions/{name}"
    pending = (await api.call("PATCH", path, {"plan_id": cheap["plan_id"]})).body["subscription"]
    assert pending["plan_id"] == bought["plan_id"]
    assert pending["pending_change"] == {
        "type": "downgrade",
        "effective_at": pending["cycle_end_at"],
        "plan_id": cheap["plan_id"],
        "subscription_config_id": cheap["plan_id"],
        "name": "Plan 10",
        "period_amount": "10.0000000000",
        "included_credit": "10.0000000000",
    }
    assert (await api.call("DELETE", f"/v1/plans/{cheap['plan_id']}")).status == 409
    kept = (await api.call("PATCH", path, {"plan_id": bought["plan_id"]})).body["subscription"]
    assert kept["pending_change"] is None


async def test_a_cancelled_subscription_lasts_to_its_cycles_end(api: Api) -> None:
    _, bought, name = await subscribed(api, "leaver", "8")
    for path in (f"/v1/subscriptions/{name}", f"/v1/active-subscriptions/{name}"):
        gone = await api.call("DELETE", path)
        assert (gone.status, gone.body) == (200, {"id": name, "success": True, "deleted": True})
    shown = (await api.call("GET", "/v1/customers/leaver/subscription")).body["subscription"]
    assert (shown["status"], shown["credits"]["cycle_remaining"]) == ("active", "8.0000000000")
    assert shown["pending_change"] == {"type": "cancellation", "effective_at": shown["cycle_end_at"]}
    assert shown["cancelled_at"] is not None
    back = await api.call("PATCH", f"/v1/subscriptions/{name}", {"plan_id": bought["plan_id"]})
    assert back.body["subscription"]["pending_change"] is None
    for method in ("GET", "PATCH", "DELETE"):
        missing = await api.call(method, "/v1/subscriptions/sub_none")
        assert (missing.status, missing.body["error"]["code"]) == (404, "subscription_not_found")


async def test_active_subscriptions_as_sdk_6_lists_them(api: Api) -> None:
    customer, bought, name = await subscribed(api, "bare", "4")
    listed = (await api.call("GET", "/v1/active-subscriptions")).body
    shown = next(each for each in listed if each["active_subscription_id"] == name)
    assert (shown["wallet_id"], shown["subscription_config_id"]) == (customer.wallet.wallet_id, bought["plan_id"])
    assert shown["billing_anchor"] == int(shown["started_at"][8:10])
    assert (shown["wallet"]["active_balance"], shown["wallet"]["email"]) == ("4.0000000000", "a@example.com")
    config = shown["subscription_config"]
    assert {field: config[field] for field in config} == {field: bought[field] for field in config}
