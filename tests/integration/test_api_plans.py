"""Plans and their credit bundles, under the names of all eras."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from api_fixtures import FIXED, Api
from shared_api import shared_api  # noqa: F401

from gateway.errors import ObolError

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLAN = {"name": "Pro", "period_amount": "25.00", "billing_interval": "month"}
PACK = {"name": "Pack", "cost": "9.00", "credit_amount": "10.00"}
PATHS = ("/v1/plans", "/v1/subscription_configs", "/v1/subscription-configs")
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "name"),
    ({"name": "a\nb"}, "name"),
    ({"period_amount": None}, "period_amount"),
    ({"period_amount": "-1"}, "period_amount"),
    ({"period_amount": "10000.01"}, "period_amount"),
    ({"period_amount": "1e3"}, "period_amount"),
    ({"included_credit": "25.01"}, "included_credit"),
    ({"billing_interval": "quarter"}, "billing_interval"),
    ({"rollover_type": "half"}, "rollover_type"),
    ({"overage": "maybe"}, "overage"),
    ({"overage_cap": "a"}, "overage_cap"),
    ({"unlinked_meters": "prepaid"}, "unlinked_meters"),
    ({"credit_bundles": [{**PACK, "cost": None}]}, "credit_bundles[0].cost"),
    ({"credit_bundles": [PACK, {**PACK, "credit_amount": "0"}]}, "credit_bundles[1].credit_amount"),
    ({"credit_bundles": [PACK] * 21}, "credit_bundles"),
    ({"default_auto_top_up_bundle_index": 0}, "default_auto_top_up_bundle_index"),
    ({"meter_ids": ["m"] * 101}, "meter_ids"),
    ({"meter_ids": "m"}, "meter_ids"),
    ({"meter_ids": ["a"], "product_ids": ["b"]}, "product_ids"),
    ({"markup_percent": 20}, "period_amount"),
    ({"period_amount": None, "markup_percent": 101}, "markup_percent"),
    ({"period_amount": None, "markup_percent": "many"}, "markup_percent"),
    ({"period_amount": None, "markup_percent": "NaN"}, "markup_percent"),
    ({"period_amount": None, "markup_percent": 0.1234567}, "markup_percent"),
]


async def make(api: Api, **fields: Any) -> dict[str, Any]:
    made = await api.call("POST", "/v1/plans", {**PLAN, **fields})
    assert made.status == 201, made.body
    body: dict[str, Any] = made.body
    return body


async def test_a_plan_under_all_names_with_what_is_not_said(api: Api) -> None:
    for path in PATHS:
        shown = (await api.call("POST", path, {"name": "Pro", "period_amount": 25, "rollover_type": "full"})).body
        assert shown["plan_id"] == shown["subscription_config_id"] == shown["id"]
        assert shown["plan_id"].startswith("subconf_")
        assert (shown["period_amount"], shown["included_credit"]) == ("25.0000000000", "25.0000000000")
        assert (shown["billing_interval"], shown["rollover_type"], shown["bundle_rollover_type"]) == (
            "month",
            "full",
            "full",
        )
        assert (shown["overage"], shown["overage_cap"], shown["unlinked_meters"]) == ("charge", None, "refuse")
        assert (shown["linked_meters"], shown["credit_bundles"], shown["price"]) == ([], [], None)
        assert (shown["default_auto_top_up_bundle_id"], shown["status"], shown["is_free"]) == (None, "active", False)
        assert shown["merchant_id"] == api.merchant.merchant_id
        for each in PATHS:
            assert (await api.call("GET", f"{each}/{shown['plan_id']}")).body == shown


async def test_pages_and_the_list_without(api: Api) -> None:
    mine = [(await make(api, name=f"P{n}"))["plan_id"] for n in range(3)][::-1]
    first = (await api.call("GET", "/v1/plans", limit="2")).body
    rest = (await api.call("GET", "/v1/subscription_configs", limit="2", cursor=first["next_cursor"])).body
    assert [each["plan_id"] for each in first["data"] + rest["data"]][:3] == mine
    bare = (await api.call("GET", "/v1/subscription-configs")).body
    assert [each["subscription_config_id"] for each in bare][:3] == mine
    assert [each["name"] for each in bare if each["is_free"]] == ["Free"]


async def test_bundles_are_made_changed_and_removed_with_their_plan(api: Api) -> None:
    packs = [{**PACK, "name": name} for name in ("S", "M", "L")]
    plan = await make(api, credit_bundles=packs, default_auto_top_up_bundle_index=1)
    small, medium, large = plan["credit_bundles"]
    assert [each["name"] for each in plan["credit_bundles"]] == ["S", "M", "L"]
    assert plan["default_auto_top_up_bundle_id"] == medium["credit_bundle_id"]
    assert (small["cost"], small["credit_amount"]) == ("9.0000000000", "10.0000000000")
    changes = [
        {**small, "cost": "8", "name": "XS"},
        {**medium, "is_deleted": True},
        {**PACK, "name": "XL"},
    ]
    path = f"/v1/plans/{plan['plan_id']}"
    changed = (await api.call("PATCH", path, {"credit_bundles": changes})).body
    assert [each["name"] for each in changed["credit_bundles"]] == ["XS", "L", "XL"]
    assert changed["credit_bundles"][0]["cost"] == "8.0000000000"
    assert changed["default_auto_top_up_bundle_id"] is None
    chosen = (await api.call("PATCH", path, {"default_auto_top_up_bundle_id": large["credit_bundle_id"]})).body
    assert chosen["default_auto_top_up_bundle_id"] == large["credit_bundle_id"]
    assert chosen["credit_bundles"] == changed["credit_bundles"]
    none = (await api.call("PATCH", path, {"default_auto_top_up_bundle_id": None})).body
    assert none["default_auto_top_up_bundle_id"] is None
    for gone in (medium["credit_bundle_id"], "cb_none"):
        refused = await api.call("PATCH", path, {"credit_bundles": [{"credit_bundle_id": gone, "name": "?"}]})
        assert (refused.status, refused.body["error"]["param"]) == (404, "credit_bundles[0].credit_bundle_id")


async def test_bundles_are_listed_by_plan_and_read(api: Api) -> None:
    plan = await make(api, credit_bundles=[{**PACK, "name": name} for name in ("A", "B")])
    await make(api, credit_bundles=[PACK])
    for field in ("plan_id", "subscription_config_id"):
        listed = (await api.call("GET", "/v1/credit_bundles", **{field: plan["plan_id"]})).body
        assert sorted(each["name"] for each in listed["data"]) == ["A", "B"]
        assert {each["plan_id"] for each in listed["data"]} == {plan["plan_id"]}
    assert len((await api.call("GET", "/v1/credit_bundles")).body["data"]) >= 3
    first = (await api.call("GET", "/v1/credit_bundles", limit="1", plan_id=plan["plan_id"])).body
    assert first["has_more"] is True
    one = first["data"][0]
    assert (await api.call("GET", f"/v1/credit_bundles/{one['credit_bundle_id']}")).body == one
    assert one["plan_id"] == one["subscription_config_id"]
    missing = await api.call("GET", "/v1/credit_bundles", plan_id="subconf_none")
    assert (missing.status, missing.body["error"]["param"]) == (404, "plan_id")


@pytest.mark.parametrize(("fields", "param"), MISTAKES)
async def test_a_mistake_names_its_field(api: Api, fields: dict[str, Any], param: str) -> None:
    refused = await api.call("POST", "/v1/plans", {**PLAN, **fields})
    assert (refused.status, refused.body["error"]["param"]) == (400, param)


async def test_what_is_agreed_with_subscribers_cannot_be_changed(api: Api) -> None:
    plan = await make(api, included_credit="20")
    path = f"/v1/subscription-configs/{plan['plan_id']}"
    same = await api.call("PUT", path, {"name": "Max", "period_amount": "25", "rollover_type": "full"})
    assert (same.status, same.body["name"], same.body["rollover_type"]) == (200, "Max", "full")
    assert same.body["included_credit"] == "20.0000000000"
    for field, value in (("period_amount", "26"), ("billing_interval", "year")):
        refused = await api.call("PATCH", f"/v1/plans/{plan['plan_id']}", {field: value, "name": "No"})
        assert (refused.status, refused.body["error"]["param"]) == (400, field)
    refused = await api.call("PATCH", path.replace("-", "_"), {"included_credit": "25.5"})
    assert (refused.status, refused.body["error"]["param"]) == (400, "included_credit")
    capped = {"overage_cap": "5", "overage": "block", "unlinked_meters": "allow", "bundle_rollover_type": "none"}
    changed = (await api.call("PATCH", path.replace("-", "_"), capped)).body
    assert {name: changed[name] for name in capped} == {**capped, "overage_cap": "5.0000000000"}
    assert (await api.call("PATCH", path.replace("-", "_"), {"overage_cap": None})).body["overage_cap"] is None
    assert (await api.call("GET", path)).body["name"] == "Max"


async def test_meters_are_linked_by_any_name_and_hold_at_once(api: Api) -> None:
    meters = [await api.new_meter(slug, FIXED) for slug in ("linked-1", "linked-2", "linked-3")]
    names = [meters[0].meter_id, meters[1].meter_slug, meters[2].meter_secret, meters[0].meter_slug]
    plan = await make(api, product_ids=names)
    assert {each["meter_id"] for each in plan["linked_meters"]} == {meter.meter_id for meter in meters}
    assert sorted(each["name"] for each in plan["linked_meters"]) == ["Linked-1", "Linked-2", "Linked-3"]
    refused = await api.call("POST", "/v1/plans", {**PLAN, "meter_ids": ["linked-1", "linked-9"]})
    assert (refused.status, refused.body["error"]["param"]) == (404, "meter_ids[1]")

    await api.accounts.subscribe(api.customer, plan["plan_id"])
    await api.principals.principal(token(api, "linked-2"))
    relinked = (await api.call("PATCH", f"/v1/plans/{plan['plan_id']}", {"meter_ids": ["linked-1"]})).body
    assert [each["meter_id"] for each in relinked["linked_meters"]] == [meters[0].meter_id]
    assert api.announced[-1] == api.merchant.merchant_id
    with pytest.raises(ObolError, match="not on the customer's plan"):
        await api.principals.principal(token(api, "linked-2"))
    await api.call("DELETE", "/v1/meters/linked-1")
    shown = (await api.call("GET", f"/v1/plans/{plan['plan_id']}")).body
    assert shown["linked_meters"] == relinked["linked_meters"], "the plan allows no more than before"
    with pytest.raises(ObolError, match="not on the customer's plan"):
        await api.principals.principal(token(api, "linked-2"))
    await api.call("PATCH", f"/v1/plans/{plan['plan_id']}", {"meter_ids": []})
    await api.principals.principal(token(api, "linked-2"))


def token(api: Api, slug: str) -> str:
    fields = {"secret_key": api.merchant.secret_key, "connection_id": api.customer.connection_id, "meter_slug": slug}
    return base64.b64encode(json.dumps(fields).encode()).decode()


async def test_a_plan_in_use_is_archived_and_another_deleted(api: Api) -> None:
    used, unused = (await make(api))["plan_id"], (await make(api))["plan_id"]
    await api.accounts.subscribe(await api.new_customer("plan-user"), used)
    refused = await api.call("DELETE", f"/v1/plans/{used}")
    assert (refused.status, refused.body["error"]["code"]) == (409, "plan_in_use")
    assert f"POST /v1/plans/{used}/archive" in refused.body["error"]["message"]
    archived = await api.call("POST", f"/v1/plans/{used}/archive")
    assert (archived.status, archived.body["id"], archived.body["status"]) == (200, used, "archived")
    assert (await api.call("POST", f"/v1/plans/{used}/archive")).body == archived.body
    gone = await api.call("DELETE", f"/v1/subscription-configs/{unused}")
    assert gone.body == {"id": unused, "success": True, "deleted": True}
    for method in ("GET", "PATCH", "DELETE"):
        missing = await api.call(method, f"/v1/plans/{unused}")
        assert (missing.status, missing.body["error"]["code"]) == (404, "plan_not_found")


async def test_the_free_plan_stays(api: Api) -> None:
    free = next(each for each in (await api.call("GET", "/v1/subscription-configs")).body if each["is_free"])
    assert (free["period_amount"], free["included_credit"]) == ("0.0000000000", "0.0000000000")
    for method, path in (("DELETE", ""), ("POST", "/archive")):
        refused = await api.call(method, f"/v1/plans/{free['plan_id']}{path}")
        assert (refused.status, refused.body["error"]["param"]) == (400, "id")


async def test_a_markup_is_a_plan_with_a_percentage_meter(api: Api) -> None:
    made = await api.call("POST", "/v1/plans", {"name": "Payg", "markup_percent": 12.5, "description": "of SDK 6.0.1"})
    plan = made.body
    assert (made.status, plan["period_amount"], plan["status"]) == (201, "0.0000000000", "active")
    (meter,) = plan["linked_meters"]
    price = {"id": meter["meter_id"], "type": "payg", "markup_type": "percentage", "markup_amount": "12.5"}
    assert plan["price"] == price
    listed = (await api.call("GET", "/v1/plans")).body["data"]
    assert {each["id"]: each["price"] for each in listed}[plan["id"]] == price
    shown = (await api.call("GET", f"/v1/meters/{meter['meter_id']}")).body
    assert (shown["name"], shown["rate_type"], shown["tiers"][0]["rate"]) == ("Payg", "percentage", "12.5")
    assert shown["base_cost_payer"] == "wallet"


@pytest.mark.parametrize("zero", ["0E-4000000000", "-0E-999999999999", "0e-10000000"])
async def test_a_zero_of_many_places_is_a_zero(api: Api, zero: str) -> None:
    made = await api.call("POST", "/v1/plans", {"name": "Payg", "markup_percent": zero})
    assert (made.status, made.body["price"]["markup_amount"]) == (201, "0")
