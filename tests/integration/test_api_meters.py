"""Meters and products: create, read, list, change, delete."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from api_fixtures import Api, api_fixture  # noqa: F401

NEW = {"name": "GPT calls!", "rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": "0", "rate": "0.02"}]}


async def create(api: Api, **fields: Any) -> Any:
    reply = await api.call("POST", "/v1/meters", {**NEW, **fields})
    assert reply.status == 201, reply
    return reply.body


async def test_create_and_read_under_every_name(api: Api) -> None:
    made = await create(api)
    assert made["meter_slug"] == "gpt-calls"
    assert made["meter_id"] == made["product_id"]
    assert made["meter_id"].startswith("prd_")
    assert made["meter_secret"] == made["product_secret"]
    assert made["tiers"] == [{"start": 0, "rate": "0.02", "type": "tokens_1m"}]
    assert (made["token_basis"], made["base_cost_payer"], made["version"]) == ("input+output", "merchant", 1)
    for path in ("meters", "products"):
        for name in (made["meter_id"], "gpt-calls", made["meter_secret"]):
            assert (await api.call("GET", f"/v1/{path}/{name}")).body == made
    assert api.announced == [api.merchant.merchant_id]


async def test_a_new_meter_is_usable_at_once_after_it_was_missed(api: Api) -> None:
    assert (await api.report("r-1", product_secret="gpt-calls")).status == 404
    await create(api)
    assert (await api.report("r-1", product_secret="gpt-calls")).status == 200


async def test_slugs_made_from_names_never_collide(api: Api) -> None:
    made = await asyncio.gather(*(create(api) for _ in range(8)))
    assert len({meter["meter_slug"] for meter in made}) == 8
    assert (await create(api, name="日本"))["meter_slug"] == "meter"


async def test_a_given_slug_that_is_taken(api: Api) -> None:
    await create(api, meter_slug="mine")
    taken = await api.call("POST", "/v1/meters", {**NEW, "meter_slug": "mine"})
    assert (taken.status, taken.body["error"]["code"], taken.body["error"]["param"]) == (
        409,
        "slug_taken",
        "meter_slug",
    )
    stranger = await api.accounts.create_merchant("acc_2", "live", "Other")
    assert (await api.call("POST", "/v1/meters", {**NEW, "meter_slug": "mine"}, key=stranger.secret_key)).status == 201


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": None}, "name"),
        ({"name": "a\x00"}, "name"),
        ({"tiers": []}, "tiers"),
        ({"tiers": [{"start": 5, "rate": "1"}]}, "tiers[0].start"),
        ({"tiers": [{"start": 0, "rate": "1"}, {"start": 0, "rate": "1"}]}, "tiers[1].start"),
        ({"tiers": [{"start": 0, "rate": "-1"}]}, "tiers[0].rate"),
        ({"tiers": [{"start": True, "rate": "1"}]}, "tiers[0].start"),
        ({"rate_type": "hybrid"}, "rate_type"),
        ({"tier_type": "words"}, "tier_type"),
        ({"base_cost_payer": "bank"}, "base_cost_payer"),
        ({"meter_slug": "no spaces"}, "meter_slug"),
        ({"meter_slug": "prd_x"}, "meter_slug"),
    ],
)
async def test_a_bad_field_is_named(api: Api, fields: dict[str, Any], param: str) -> None:
    reply = await api.call("POST", "/v1/meters", {**NEW, **fields})
    assert (reply.status, reply.body["error"]["param"]) == (400, param)


async def test_rates_given_as_numbers_are_exact(api: Api) -> None:
    raw = b'{"name":"n","tiers":[{"start":0,"rate":0.00000002},{"start":1.0e1,"rate":3}]}'
    reply = await api.call("POST", "/v1/meters", raw=raw)
    assert [(tier["start"], tier["rate"]) for tier in reply.body["tiers"]] == [(0, "0.00000002"), (10, "3")]
    huge = await api.call("POST", "/v1/meters", raw=b'{"name":"n","tiers":[{"start":0,"rate":1e999999}]}')
    assert (huge.status, huge.body["error"]["param"]) == (400, "tiers[0].rate")


async def test_a_change_of_pricing_is_a_new_version(api: Api) -> None:
    made = await create(api)
    renamed = (await api.call("PATCH", f"/v1/meters/{made['meter_id']}", {"name": "Other"})).body
    assert (renamed["name"], renamed["version"], renamed["meter_slug"]) == ("Other", 1, "gpt-calls")
    same = (await api.call("PATCH", "/v1/products/gpt-calls", {"tiers": [{"start": 0, "rate": 0.020}]})).body
    assert same["version"] == 1
    before = await api.report("r-1", product_secret="gpt-calls", input_tokens=10**6)
    dearer = (await api.call("PATCH", "/v1/meters/gpt-calls", {"tiers": [{"start": 0, "rate": "5"}]})).body
    assert dearer["version"] == 2
    after = await api.report("r-2", product_secret="gpt-calls", input_tokens=10**6)
    assert before.body["charge"]["amount"] == "0.0200000000"
    assert after.body["charge"]["amount"] == "5.0000000000"
    await api.flush()
    assert (await api.call("GET", "/v1/requests/r-1")).body == before.body


async def test_concurrent_changes_each_make_a_version(api: Api) -> None:
    made = await create(api)
    path = f"/v1/meters/{made['meter_id']}"
    changes = [api.call("PATCH", path, {"tiers": [{"start": 0, "rate": str(rate)}]}) for rate in range(1, 9)]
    versions = [reply.body["version"] for reply in await asyncio.gather(*changes)]
    assert sorted(versions) == list(range(2, 10))


@pytest.mark.parametrize(("field", "value"), [("rate_type", "percentage"), ("tier_type", "minutes")])
async def test_what_is_counted_is_fixed(api: Api, field: str, value: str) -> None:
    made = await create(api)
    refused = await api.call("PATCH", f"/v1/meters/{made['meter_id']}", {field: value})
    assert (refused.status, refused.body["error"]["param"]) == (400, field)
    assert (await api.call("PATCH", f"/v1/meters/{made['meter_id']}", {field: made[field]})).status == 200


async def test_a_percentage_is_paid_on_top_of_the_cost(api: Api) -> None:
    made = await create(api, rate_type="percentage", tiers=[{"start": 0, "rate": "12.5"}])
    assert made["base_cost_payer"] == "wallet"
    assert made["tiers"][0]["rate"] == "12.5"
    changed = (await api.call("PATCH", f"/v1/meters/{made['meter_id']}", {"base_cost_payer": "merchant"})).body
    assert (changed["base_cost_payer"], changed["version"], changed["tiers"]) == ("merchant", 2, made["tiers"])


async def test_a_deleted_meter_is_gone_and_its_slug_free(api: Api) -> None:
    made = await create(api)
    await api.report("r-1", product_secret=made["meter_secret"])
    gone = await api.call("DELETE", f"/v1/products/{made['meter_id']}")
    assert gone.body == {"success": True, "id": made["meter_id"], "deleted": True}
    for method in ("GET", "PATCH", "DELETE"):
        reply = await api.call(method, f"/v1/meters/{made['meter_id']}")
        assert (reply.status, reply.body["error"]["code"]) == (404, "meter_not_found")
    assert (await api.report("r-2", product_secret=made["meter_secret"])).status == 404
    assert (await create(api))["meter_slug"] == "gpt-calls"


async def test_the_list_is_paged_newest_first(api: Api) -> None:
    made = [(await create(api))["meter_id"] for _ in range(4)]
    first = (await api.call("GET", "/v1/meters", limit="3")).body
    assert [meter["meter_id"] for meter in first["data"]] == made[:0:-1]
    rest = (await api.call("GET", "/v1/products", cursor=first["next_cursor"])).body
    assert [meter["meter_id"] for meter in rest["data"]] == [made[0], api.meter.meter_id, api.merchant.self_meter_id]
    assert "next_cursor" not in rest


async def test_others_meters_are_not_found(api: Api) -> None:
    stranger = await api.accounts.create_merchant("acc_2", "live", "Other")
    for name in (api.meter.meter_id, "tokens", api.meter.meter_secret, "%00"):
        assert (await api.call("GET", f"/v1/meters/{name}", key=stranger.secret_key)).status == 404
