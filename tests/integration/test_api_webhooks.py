"""Webhook endpoints and their log over the API."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from webhook_support import Shop, clean_shop, shared_shop  # noqa: F401

from gateway.api import paging, webhook_deliveries, webhooks
from gateway.errors import ObolError

pytestmark = pytest.mark.asyncio(loop_scope="module")
URL = "https://hooks.example.com/in"


async def create(here: Shop, **fields: Any) -> Any:
    return await here.api.call("POST", "/v1/webhooks", {"name": "Hook", "url": URL, **fields})


async def test_an_endpoint_through_its_life(here: Shop) -> None:
    made = await create(here)
    assert made.status == 201
    secret = made.body.pop("webhook_secret")
    assert secret.startswith("whsec_")
    path = f"/v1/webhooks/{made.body['webhook_id']}"
    assert made.body["webhook_id"].startswith("wh_")
    assert made.body.items() >= {"name": "Hook", "url": URL, "status": "active", "events": None}.items()
    assert (await here.api.call("GET", path)).body == made.body
    assert (await here.api.call("GET", "/v1/webhooks")).body == {"data": [made.body], "has_more": False}
    changes = {"name": "New", "url": URL + "/2", "event_style": "customer", "signature_style": "timestamped"}
    changed = await here.api.call("PATCH", path, changes | {"events": ["customer.deleted", "connection.created"]})
    assert changed.body == made.body | changes | {"events": ["customer.created", "customer.deleted"]}
    assert (await here.api.call("PATCH", path, {"name": None, "events": None})).body == changed.body | {"events": None}
    rotated = await here.api.call("POST", path + "/rotate")
    assert rotated.status == 200
    assert rotated.body.pop("webhook_secret") not in ("", secret)
    deleted = await here.api.call("DELETE", path)
    assert deleted.body == {"success": True, "id": made.body["webhook_id"], "deleted": True}
    for method, each in (("GET", path), ("PATCH", path), ("DELETE", path), ("POST", path + "/rotate")):
        missing = await here.api.call(method, each, {})
        assert (missing.status, missing.body["error"]["code"]) == (404, "webhook_not_found"), method
    assert (await here.api.call("GET", "/v1/webhooks")).body["data"] == []


async def test_there_are_three_at_most_also_when_made_at_once(here: Shop) -> None:
    for _ in range(2):
        assert (await create(here)).status == 201
    store, merchant_id = here.api.store, here.api.merchant.merchant_id
    async with store.transaction() as db:
        await db.execute(store.sql("webhooks.lock_merchant"), merchant_id)
        third = (f"wh_{merchant_id}", merchant_id, "Third", URL, "default", "connection", None)
        await db.execute(store.sql("webhooks.create"), *third)
        fourth = asyncio.create_task(create(here))
        await asyncio.sleep(0.05)
    refused = await fourth
    assert (refused.status, refused.body["error"]["code"]) == (409, "webhook_limit_reached")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": 1}, "name"),
        ({"url": "http://hooks.example.com/in"}, "url"),
        ({"url": "https://127.0.0.2/in"}, "url"),
        ({"url": None}, "url"),
        ({"events": []}, "events"),
        ({"events": ["invoice.paid"]}, "events[0]"),
        ({"event_style": "plan"}, "event_style"),
        ({"signature_style": "none"}, "signature_style"),
    ],
)
async def test_a_field_that_cannot_be_is_named(here: Shop, fields: dict[str, Any], param: str) -> None:
    refused = await create(here, **fields)
    assert (refused.status, refused.body["error"]["param"]) == (400, param), refused.body
    made = (await create(here)).body
    if None not in fields.values():
        again = await here.api.call("PATCH", f"/v1/webhooks/{made['webhook_id']}", fields)
        assert (again.status, again.body["error"]["param"]) == (400, param)


async def test_a_host_with_a_private_address_is_refused_and_one_without_any_is_not(here: Shop) -> None:
    answers: list[ObolError] = []

    async def resolve(_host: str, _port: int) -> None:
        raise answers.pop()

    here.api.context.webhook_addresses = resolve
    try:
        answers.append(ObolError("forward_target_invalid", "private", param="u"))
        refused = await create(here)
        assert (refused.status, refused.body["error"]["param"]) == (400, "url")
        answers.append(ObolError("upstream_failed", "no such host"))
        assert (await create(here)).status == 201
    finally:
        here.api.context.webhook_addresses = None


async def test_another_merchants_endpoints_are_unknown(here: Shop) -> None:
    made = (await create(here)).body
    await here.tell(here.api.customer, "connection.created")
    (event,) = await here.log(made["webhook_id"])
    test_side = await here.api.accounts.create_merchant("acc_1", "test", "Shop, test side")
    path, key = f"/v1/webhooks/{made['webhook_id']}", test_side.secret_key
    for method, each in (
        ("GET", path),
        ("PATCH", path),
        ("DELETE", path),
        ("POST", path + "/rotate"),
        ("GET", path + "/deliveries"),
        ("POST", f"{path}/deliveries/{event['event_id']}/resend"),
    ):
        reply = await here.api.call(method, each, {}, key=key)
        assert (reply.status, reply.body["error"]["code"]) == (404, "webhook_not_found"), (method, each)
    assert (await here.api.call("GET", "/v1/webhooks", key=key)).body["data"] == []
    assert (await here.api.call("GET", path)).status == 200


async def test_the_log_is_paged_and_filtered(here: Shop) -> None:
    endpoint = await here.endpoint(event_style="customer")
    other = await here.api.new_customer(endpoint["webhook_id"])
    for _ in range(4):
        await here.tell(here.api.customer, "connection.deleted")
    await here.deliver()
    await here.tell(other, "checkout.completed")
    every = await here.log(endpoint["webhook_id"])
    assert [each["event"] for each in every] == ["checkout.completed", *["customer.deleted"] * 4, "customer.created"]
    first = await here.api.call("GET", f"/v1/webhooks/{endpoint['webhook_id']}/deliveries", limit="4")
    cursor = first.body["next_cursor"]
    rest = await here.api.call("GET", f"/v1/webhooks/{endpoint['webhook_id']}/deliveries", limit="4", cursor=cursor)
    assert first.body["data"] + rest.body["data"] == every
    assert [each["connection_id"] for each in await here.log(endpoint["webhook_id"], status="waiting")] == [
        other.connection_id
    ]
    bad = await here.api.call("GET", f"/v1/webhooks/{endpoint['webhook_id']}/deliveries", status="lost")
    assert (bad.status, bad.body["error"]["param"]) == (400, "status")


async def test_a_delivered_event_is_sent_again_as_it_was(here: Shop) -> None:
    endpoint = await here.endpoint()
    await here.tell(here.api.customer, "connection.created")
    await here.deliver()
    (event,) = await here.log(endpoint["webhook_id"])
    path = f"/v1/webhooks/{endpoint['webhook_id']}/deliveries"
    resent = await here.api.call("POST", f"{path}/{event['event_id']}/resend")
    assert (resent.status, resent.body["status"], resent.body["attempts"]) == (200, "waiting", 0)
    await here.deliver()
    first, second = here.receiver.received
    assert first.body == second.body
    missing = await here.api.call("POST", f"{path}/evt_unknown/resend")
    assert (missing.status, missing.body["error"]["code"]) == (404, "webhook_delivery_not_found")


async def test_an_event_that_waits_for_its_next_attempt_is_tried_at_once(here: Shop) -> None:
    endpoint = await here.endpoint()
    here.receiver.script.append(500)
    await here.tell(here.api.customer, "connection.created")
    await here.deliver()
    await here.tell(here.api.customer, "connection.deleted")
    event = (await here.log(endpoint["webhook_id"]))[-1]
    await here.api.call("POST", f"/v1/webhooks/{endpoint['webhook_id']}/deliveries/{event['event_id']}/resend")
    await here.deliver()
    told = [each["event"] for each in here.receiver.events()]
    assert told == ["connection.created", "connection.created", "connection.deleted"]


async def test_one_that_is_being_sent_stays_alone(here: Shop) -> None:
    endpoint = await here.endpoint()
    here.receiver.script.append("hang")
    await here.tell(here.api.customer, "connection.created")
    await here.deliverer.deliver_due()
    while not here.receiver.received:
        await asyncio.sleep(0.002)
    (event,) = await here.log(endpoint["webhook_id"])
    path = f"/v1/webhooks/{endpoint['webhook_id']}/deliveries/{event['event_id']}/resend"
    assert (await here.api.call("POST", path)).body["attempts"] == 1
    await here.deliver()
    (after,) = await here.log(endpoint["webhook_id"])
    assert (after["attempts"], after["last_error"]) == (1, "no answer within 0.3 s")


async def test_one_that_is_sent_again_during_an_attempt_does_not_wait_for_that_ones_retry(here: Shop) -> None:
    endpoint = await here.endpoint()
    await here.tell(here.api.customer, "connection.created")
    await here.deliver()
    here.receiver.script.append("hang")
    await here.tell(here.api.customer, "connection.deleted")
    await here.deliverer.deliver_due()
    while len(here.receiver.received) < 2:
        await asyncio.sleep(0.002)
    first = (await here.log(endpoint["webhook_id"]))[-1]
    path = f"/v1/webhooks/{endpoint['webhook_id']}/deliveries/{first['event_id']}/resend"
    assert (await here.api.call("POST", path)).body["status"] == "waiting"
    await here.deliver()
    told = [each["event"] for each in here.receiver.events()]
    assert told == ["connection.created", "connection.deleted", "connection.created"]
    await here.later()
    await here.deliver()
    assert [each["status"] for each in await here.log(endpoint["webhook_id"])] == ["delivered"] * 2


async def test_what_waits_is_hurried_page_by_page_when_an_endpoint_is_active_again(
    here: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "HURRY_PAGE", 2)
    endpoint = await here.endpoint()
    for number in range(4):
        await here.tell(await here.api.new_customer(f"{endpoint['webhook_id']}-{number}"), "connection.deleted")
    await here.execute("UPDATE webhook_lanes SET due_at = now() + interval '1 hour'")
    (claimed, *_) = await here.value("SELECT array_agg(connection_id) FROM webhook_lanes")
    await here.execute("UPDATE webhook_lanes SET claim = gen_random_uuid() WHERE connection_id = $1", claimed)
    for status in ("paused", "active"):
        await here.api.call("PATCH", f"/v1/webhooks/{endpoint['webhook_id']}", {"status": status})
    waiting = "SELECT array_agg(connection_id) FROM webhook_lanes WHERE due_at > now()"
    assert await here.value(waiting) == [claimed]
    # Sent again, as after an answer that got lost half-way.
    await here.execute("UPDATE webhook_lanes SET due_at = now() + interval '1 hour'")
    await here.api.call("PATCH", f"/v1/webhooks/{endpoint['webhook_id']}", {"status": "active"})
    assert await here.value(waiting) == [claimed]


async def test_the_few_that_are_dead_are_found_without_those_that_are_not(here: Shop) -> None:
    endpoint = (await create(here)).body["webhook_id"]
    rows = """
INSERT INTO webhook_deliveries (event_id, webhook_id, merchant_id, connection_id, event, due_at, status)
SELECT 'evt_' || number, $1, 'mer_1', 'con_1', 'connection.deleted', now(),
       CASE WHEN number % 1000 = 0 THEN 'dead' ELSE 'delivered' END
FROM generate_series(1, 5000) number"""
    await here.execute(rows, endpoint)
    await here.execute("ANALYZE webhook_deliveries")
    assert len(await here.log(endpoint, status="dead")) == 5
    async with here.api.store.connection() as db:
        sql = "EXPLAIN " + webhook_deliveries.statement(here.api.store, "dead")
        plan = await db.fetch(sql, endpoint, *paging.NEWEST, 11)
    assert "webhook_deliveries_undelivered" in str(plan)
