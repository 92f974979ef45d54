"""POST /v1/requests: charged once for each id, whatever is sent again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from api_fixtures import SHARDS, Api, Reply, api_fixture  # noqa: F401

from gateway.ledger.keys import shard_of
from gateway.ledger.row import RequestIds

GRADUATED = {
    "rate_type": "fixed",
    "tier_type": "tokens_1m",
    "tiers": [{"start": 0, "rate": "5"}, {"start": "1000000", "rate": "3"}, {"start": 10_000_000, "rate": "1"}],
}


def code(reply: Reply) -> str:
    return str(reply.body["error"]["code"])


async def test_a_report_is_charged_and_shown(api: Api) -> None:
    reply = await api.report("r-1", input_tokens=500, output_tokens=200, metadata={"team": "a"}, model="m")
    assert reply.status == 200
    shown = reply.body
    assert shown["charge"]["amount"] == shown["fee"]["amount"] == shown["total_wallet_cost"] == "0.0014000000"
    assert shown["cost"] == shown["total_merchant_cost"] == shown["service_charge"]["amount"] == "0.0000000000"
    assert shown["fee"]["breakdown"] == [
        {
            "tier": {"start": 0, "rate": "2", "type": "tokens_1m"},
            "tokens": 700,
            "characters": 0,
            "seconds": 0,
            "cost": "0.0014000000",
        }
    ]
    assert shown["connection_id"] == shown["customer_id"] == api.customer.connection_id
    assert shown["product_id"] == shown["meter_id"] == api.meter.meter_id
    assert (shown["provider"], shown["endpoint"], shown["billing_mode"]) == ("other", "", "report")
    assert shown["metadata"] == {"team": "a"}
    assert shown["model_usage"]["total_tokens"] == 700
    assert (await api.balance()).overage_nano == 1_400_000


async def test_the_object_is_the_same_when_read_later(api: Api) -> None:
    first = await api.report("r/1 ü", input_seconds=1.25, output_characters=3, metadata={"k": "v"})
    again = await api.report("r/1 ü", input_seconds=1.25, output_characters=3, metadata={"k": "v"})
    await api.flush()
    later = await api.report("r/1 ü", input_seconds=1.25, output_characters=3, metadata={"k": "v"})
    read = await api.call("GET", "/v1/requests/r%2F1%20%C3%BC")
    assert first.status == again.status == later.status == read.status == 200
    assert first.body == again.body == later.body == read.body


async def test_fifty_at_once_are_one_debit(api: Api) -> None:
    replies = await asyncio.gather(*(api.report("r-1", input_tokens=1_000_000) for _ in range(50)))
    assert {reply.status for reply in replies} == {200}
    assert all(reply.body == replies[0].body for reply in replies)
    assert (await api.balance()).overage_nano == 2_000_000_000
    assert (await api.balance()).seq == 1


async def test_the_same_meaning_under_other_names_is_the_same_request(api: Api) -> None:
    first = await api.report("r-1", input_tokens=7)
    named = await api.report(
        "r-1",
        input_tokens=7,
        output_tokens=0,
        connection_secret="",
        product_secret="",
        customer_id="user-1",
        meter_slug="tokens",
    )
    assert named.status == 200
    assert named.body == first.body


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize(
    "other", [{"input_tokens": 8}, {"metadata": {"a": "b"}}, {"connection_secret": "user-2"}, {"model": "m"}]
)
async def test_another_payload_under_the_same_id_is_refused(api: Api, flushed: bool, other: dict[str, Any]) -> None:
    second = await api.new_customer("user-2")
    first = await api.report("r-1", input_tokens=7)
    if flushed:
        await api.flush()
        await api.forget_in_redis("*:[ir]:*")
    refused = await api.report("r-1", **{"input_tokens": 7, **other})
    assert (refused.status, code(refused)) == (409, "request_id_conflict")
    assert (await api.balance()).seq == 1
    assert (await api.balance(second)).seq == 0
    await api.flush()
    assert (await api.call("GET", "/v1/requests/r-1")).body == first.body


async def test_an_id_that_redis_has_forgotten_is_not_charged_again(api: Api) -> None:
    first = await api.report("r-1", input_tokens=7)
    await api.flush()
    await api.forget_in_redis("*:[ir]:*")
    again = await api.report("r-1", input_tokens=7)
    assert (again.status, again.body) == (200, first.body)
    assert (await api.balance()).seq == 1


async def test_a_claim_left_by_a_crash_is_no_licence_to_charge_an_old_id_again(api: Api) -> None:
    """Claimed, then killed before PostgreSQL was asked: the retry finds its own claim and must still ask."""
    await api.report("r-1", input_tokens=7)
    await api.flush()
    await api.forget_in_redis("*:r:*")
    assert (await api.report("r-1", input_tokens=7)).status == 200
    assert (await api.balance()).seq == 1


async def test_a_crash_between_claim_and_debit_is_repaired_by_the_retry(api: Api) -> None:
    await api.report("r-1", input_tokens=7)
    await api.flush()
    fields = await api.redis.hgetall(await anext(api.redis.scan_iter("*:i:*")))
    merchant_id = api.merchant.merchant_id
    shard = shard_of(f"{merchant_id}:id:r-2", SHARDS)
    claim = await api.wallets.claim(shard, merchant_id, "id:r-2", fields[b"f"].decode(), "r-2")
    assert claim.kind == "claimed"
    assert (await api.report("r-2", input_tokens=8)).status == 409
    assert (await api.report("r-2", input_tokens=7)).status == 200
    assert (await api.balance()).seq == 2


async def test_the_id_of_a_gateway_call_is_refused(api: Api) -> None:
    await api.report("req_1", input_tokens=7)
    await api.flush()
    await api.forget_in_redis("*:[ir]:*")
    async with api.store.connection() as db:
        await db.execute("UPDATE request_index SET fingerprint = NULL")
    refused = await api.report("req_1", input_tokens=7)
    assert (refused.status, code(refused)) == (409, "request_id_conflict")
    assert (await api.balance()).seq == 1


async def test_merchants_do_not_share_ids(api: Api) -> None:
    other = await api.accounts.create_merchant("acc_2", "live", "Other")
    await api.report("r-1", input_tokens=7)
    stranger = await api.call(
        "POST",
        "/v1/requests",
        {"request_id": "r-1", "connection_id": other.self_connection_id, "meter_slug": "zero-fee", "input_tokens": 1},
        key=other.secret_key,
    )
    assert stranger.status == 200
    assert stranger.body["connection_id"] == other.self_connection_id


async def test_graduated_tiers_go_on_where_the_last_request_ended(api: Api) -> None:
    await api.new_meter("graduated", GRADUATED)
    first = await api.report("r-1", product_secret="graduated", input_tokens=600_000)
    second = await api.report("r-2", product_secret="graduated", input_tokens=4_400_000)
    assert first.body["charge"]["amount"] == "3.0000000000"
    assert second.body["charge"]["amount"] == "14.0000000000"
    parts = [(line["tier"]["start"], line["tokens"], line["cost"]) for line in second.body["charge"]["breakdown"]]
    assert parts == [(0, 400_000, "2.0000000000"), (1_000_000, 4_000_000, "12.0000000000")]
    await api.flush()
    assert (await api.call("GET", "/v1/requests/r-2")).body == second.body


async def test_no_usage_bills_one_unit_of_a_requests_meter(api: Api) -> None:
    await api.new_meter(
        "flat", {"rate_type": "fixed", "tier_type": "requests", "tiers": [{"start": 0, "rate": "9.99"}]}
    )
    reply = await api.report("fee_2026-01", product_secret="flat")
    assert reply.body["charge"]["amount"] == "9.9900000000"


@pytest.mark.parametrize(
    ("number", "microseconds", "amount"),
    [
        ("0.30000000000000004", 300_000, "0.0050000000"),
        ("12.345", 12_345_000, "0.2057500000"),
        ("1e2", 100_000_000, "1.6666666670"),
        ("0.0000005", 1, "0.0000000170"),
        ("1e-999999", 0, "0.0000000000"),
        ("90071992.5", 90_071_992_500_000, None),
    ],
)
async def test_seconds_are_read_from_their_decimal_text(
    api: Api, number: str, microseconds: int, amount: str | None
) -> None:
    await api.new_meter("minutes", {"rate_type": "fixed", "tier_type": "minutes", "tiers": [{"start": 0, "rate": "1"}]})
    body = f'{{"request_id":"s","connection_id":"user-1","meter_slug":"minutes","input_seconds":{number}}}'
    reply = await api.call("POST", "/v1/requests", raw=body.encode())
    if amount is None:
        assert (reply.status, reply.body["error"]["param"]) == (400, "input_seconds")
        return
    assert reply.body["charge"]["amount"] == amount
    await api.flush()
    async with api.store.connection() as db:
        stored = await db.fetchval("SELECT usage FROM requests")
    assert stored.get("input_us", 0) == microseconds


async def test_counts_written_with_a_point_and_unknown_fields_are_accepted(api: Api) -> None:
    body = b'{"request_id":"r","connection_id":"user-1","meter_id":"tokens","input_tokens":12.0,"later":{"x":1.5}}'
    reply = await api.call("POST", "/v1/requests", raw=body)
    assert (reply.status, reply.body["model_usage"]["input_tokens"]) == (200, 12)


async def test_unknown_names_are_404_with_the_field_that_was_sent(api: Api) -> None:
    customer = await api.report("r-1", connection_secret="", customer_id="nobody")
    meter = await api.report("r-1", product_secret="", meter_secret="none")
    assert (customer.status, code(customer), customer.body["error"]["param"]) == (
        404,
        "connection_not_found",
        "customer_id",
    )
    assert (meter.status, code(meter), meter.body["error"]["param"]) == (404, "meter_not_found", "meter_secret")


async def test_a_wallet_that_redis_lost_answers_503_and_the_retry_charges(api: Api) -> None:
    key = f"*:w:{api.customer.wallet.wallet_id}"
    await api.forget_in_redis(key)
    away = await api.report("r-1", input_tokens=7)
    assert (away.status, code(away), away.headers["Retry-After"]) == (503, "wallet_unavailable", "1")
    await api.wallets.open(api.customer.wallet, status="ok", limit_nano=0, create=True)
    assert (await api.report("r-1", input_tokens=7)).status == 200
    assert (await api.balance()).seq == 1


async def test_an_empty_wallet_and_a_disabled_connection_are_no_obstacle(api: Api) -> None:
    await api.wallets.open(api.customer.wallet, status="disabled", limit_nano=0, create=False)
    assert (await api.report("r-1", input_tokens=7_000_000)).status == 200
    assert (await api.balance()).overage_nano == 14_000_000_000


async def test_a_charge_beyond_what_can_be_counted_is_refused(api: Api) -> None:
    await api.new_meter(
        "dear", {"rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": 0, "rate": "1000"}]}
    )
    reply = await api.report("r-1", product_secret="dear", input_tokens=9 * 10**12)
    assert (reply.status, code(reply)) == (400, "invalid_request")
    assert (await api.balance()).seq == 0


async def test_redis_away_is_503_in_json(api: Api) -> None:
    await api.report("warm", input_tokens=1)
    await api.connection.close()
    await asyncio.sleep(0.05)
    reply = await api.report("r-1", input_tokens=7)
    assert (reply.status, code(reply)) == (503, "ledger_unavailable")


async def test_an_id_of_the_gateways_own_form_is_refused(api: Api) -> None:
    """A gateway call under that id may be under way: a report would be a second debit for one id."""
    reply = await api.report(RequestIds().new(1), input_tokens=8)
    assert (reply.status, reply.body["error"]["code"]) == (409, "request_id_conflict")
