"""Checkout sessions, and the addresses that their tokens lead to."""

from __future__ import annotations

import json
from base64 import b64decode

from api_fixtures import Api, api_fixture  # noqa: F401
from running import running_gateway

from gateway.testing import FakeProvider

PATH = "/v1/checkout_sessions"
ONBOARDING = {"checkout_mode": "onboarding", "origin_url": "https://app.example.com"}

MISTAKES = [
    ({"origin_url": "https://a.example"}, 400, "checkout_mode"),
    ({**ONBOARDING, "checkout_mode": "gift"}, 400, "checkout_mode"),
    ({"checkout_mode": "onboarding"}, 400, "origin_url"),
    ({**ONBOARDING, "origin_url": "javascript:alert(1)"}, 400, "origin_url"),
    ({**ONBOARDING, "origin_url": "https://user:pass@a.example"}, 400, "origin_url"),
    ({**ONBOARDING, "checkout_mode": "topup"}, 400, "connection_id"),
    ({**ONBOARDING, "checkout_mode": "subscription"}, 400, "plan_id"),
    ({**ONBOARDING, "checkout_mode": "subscription", "plan_id": "subconf_none"}, 404, "plan_id"),
    ({**ONBOARDING, "connection_id": "con_none"}, 404, "connection_id"),
    ({**ONBOARDING, "checkout_mode": "credit_bundle", "customer_id": "user-1"}, 400, "credit_bundle_id"),
    (
        {**ONBOARDING, "checkout_mode": "credit_bundle", "customer_id": "user-1", "credit_bundle_id": "cb_x"},
        404,
        "credit_bundle_id",
    ),
]


async def test_a_session_under_all_names_and_its_token(api: Api) -> None:
    plan_id = await api.accounts.create_plan(api.merchant.merchant_id, "Pro", 25, [], overage="charge", cap_nano=None)
    asked = {"checkout_mode": "subscription", "origin_url": "https://app.example.com", "reference_id": "user-7"}
    made = await api.call("POST", PATH, {**asked, "subscription_config_id": plan_id, "connection_id": "user-1"})
    shown = made.body
    assert made.status == 200
    assert {name: shown[name] for name in asked} == asked
    assert shown["plan_id"] == shown["subscription_config_id"] == plan_id
    assert shown["connection_id"] == shown["customer_id"] == api.customer.connection_id
    token = json.loads(b64decode(shown["checkout_session_token"]))
    assert token["secret"].startswith("css_live_")
    assert token["base"] == str(api.client.make_url("/"))
    assert (await api.call("GET", f"{PATH}/{shown['checkout_session_id']}")).body == shown


async def test_nothing_of_a_deleted_plan_is_sold(api: Api) -> None:
    bundle = {"name": "Ten", "cost": "9", "credit_amount": "10"}
    plan = (await api.call("POST", "/v1/plans", {"name": "Pro", "period_amount": 25, "credit_bundles": [bundle]})).body
    bundle_id = plan["credit_bundles"][0]["credit_bundle_id"]
    asked = {**ONBOARDING, "checkout_mode": "credit_bundle", "customer_id": "user-1", "credit_bundle_id": bundle_id}
    made = (await api.call("POST", PATH, asked)).body
    assert (made["plan_id"], made["credit_bundle_id"]) == (plan["plan_id"], bundle_id)
    assert (await api.call("DELETE", f"/v1/plans/{plan['plan_id']}")).status == 200
    refused = await api.call("POST", PATH, asked)
    assert (refused.status, refused.body["error"]["param"]) == (404, "credit_bundle_id")
    asked = {**ONBOARDING, "checkout_mode": "subscription", "subscription_config_id": plan["plan_id"]}
    refused = await api.call("POST", PATH, asked)
    assert (refused.status, refused.body["error"]["param"]) == (404, "subscription_config_id")


async def test_what_has_no_value_is_left_out(api: Api) -> None:
    made = (await api.call("POST", PATH, {**ONBOARDING, "customer_id": None, "plan_id": ""})).body
    assert set(made) == {*ONBOARDING, "checkout_session_id", "checkout_session_token", "created_at", "expires_at"}


async def test_a_mistake_is_told_by_its_field(api: Api) -> None:
    for given, status, field in MISTAKES:
        refused = await api.call("POST", PATH, given)
        assert (refused.status, refused.body["error"]["param"]) == (status, field), given
    assert (await api.call("GET", PATH)).body == {"data": [], "has_more": False}


async def test_pages_by_reference_and_only_of_the_own_merchant(api: Api) -> None:
    for reference in ("a", "b", "a"):
        await api.call("POST", PATH, {**ONBOARDING, "reference_id": reference})
    page = (await api.call("GET", PATH, reference_id="a", limit="1")).body
    rest = (await api.call("GET", PATH, reference_id="a", limit="1", cursor=page["next_cursor"])).body
    assert [page["has_more"], rest["has_more"]] == [True, False]
    assert {one["reference_id"] for one in page["data"] + rest["data"]} == {"a"}
    other = await api.accounts.create_merchant("acc_2", "live", "Other")
    name = page["data"][0]["checkout_session_id"]
    assert (await api.call("GET", f"{PATH}/{name}", key=other.secret_key)).status == 404
    assert (await api.call("GET", PATH, key=other.secret_key)).body["data"] == []


async def test_a_flex_session(api: Api) -> None:
    plan_id = await api.accounts.create_plan(api.merchant.merchant_id, "Pro", 25, [], overage="charge", cap_nano=None)
    made = (
        await api.call("POST", "/v1/flex/checkout_sessions", {"plan_id": plan_id, "origin_url": "https://a.example"})
    ).body
    assert (set(made), made["status"]) == ({"id", "url", "expires_at", "status"}, "pending")
    session = (await api.call("GET", f"{PATH}/{made['id']}")).body
    assert made["url"] == f"/checkout/{session['checkout_session_token']}"


async def test_a_token_leads_to_its_checkout(valkey: str, postgres: str, provider: FakeProvider) -> None:
    public = "https://billing.example.com/"
    async with running_gateway(valkey, postgres, provider, public_url=public) as gateway:
        headers = {"Authorization": f"Bearer {gateway.merchant.secret_key}"}
        async with gateway.session.post(f"{gateway.url}{PATH}", headers=headers, json=ONBOARDING) as answer:
            token = (await answer.json())["checkout_session_token"]
        told = json.loads(b64decode(token))
        assert told["base"] == public
        for path in (f"embed/checkout/{told['secret']}", f"checkout/{token}", token):
            async with gateway.session.get(f"{gateway.url}/{path}") as page:
                assert (page.status, page.content_type) == (200, "text/html")
                assert "Your phone number" in await page.text()
