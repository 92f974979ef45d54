"""A call's journey on the real engines: what reaches the provider, what reaches the client, what is billed."""

from __future__ import annotations

import asyncio
import gzip

import orjson
import pytest
from running import token
from tests_support import CHAT, chat, events_of

from gateway.testing import steering_header

pytestmark = pytest.mark.asyncio


async def test_a_call_is_billed_by_exactly_its_price(gateway):
    customer = await gateway.customer()
    steer = steering_header(prompt_tokens=1000, completion_tokens=250)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(), headers=steer) as answer:
        assert answer.status == 200
        body = await answer.json()
        request_id = answer.headers["x-lava-request-id"]
    assert body["usage"]["total_tokens"] == 1250
    balance = await gateway.balance(customer)
    assert (balance.cycle_nano, balance.held_nano) == (25 * 10**9 - 25_000_000, 0)
    (row,) = await gateway.rows()
    assert (row["request_id"], row["status"], row["ending"]) == (request_id, "completed", "completed")
    assert (row["charge_nano"], row["fee_nano"], row["billing_mode"]) == (25_000_000, 25_000_000, "customer")
    assert row["usage"]["input_tokens"] == 1000
    assert row["cost_nano"] > 0
    assert row["price_version"]


async def test_a_stream_is_metered_and_its_usage_chunk_hidden_from_a_client_that_did_not_ask(gateway):
    customer = await gateway.customer()
    steer = steering_header(prompt_tokens=100, completion_tokens=20, chunks=20)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True), headers=steer) as answer:
        body = await answer.read()
    events = events_of(body)
    assert events[-1] == "[DONE]"
    assert all(event["choices"] for event in events[:-1])
    sent = gateway.provider.requests[0]
    assert sent.json["stream_options"] == {"include_usage": True}
    assert (await gateway.balance(customer)).cycle_nano == 25 * 10**9 - 120 * 20_000


async def test_a_client_that_asked_for_usage_gets_the_providers_bytes(gateway):
    customer = await gateway.customer()
    payload = chat(stream=True, stream_options={"include_usage": True})
    async with gateway.forward(CHAT, gateway.token_for(customer), json=payload) as answer:
        through = await answer.read()
    async with gateway.session.post(
        f"{gateway.provider.url}/v1/chat/completions", json=payload, headers={"Host": "api.openai.com"}
    ) as direct:
        assert through == await direct.read()
    assert events_of(through)[-2]["usage"]["total_tokens"] > 0


async def test_credentials_and_our_headers_do_not_reach_the_provider(gateway):
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    headers = {
        "X-Lava-Metadata": '{"feature":"chat"}',
        "Cookie": "a=b",
        "X-Custom": "kept",
        "Accept-Encoding": "compress, br, gzip",
    }
    async with gateway.forward(CHAT, credential, json=chat(), headers=headers) as answer:
        assert answer.status == 200
    sent = gateway.provider.requests[0]
    text = repr(sent.headers)
    assert credential not in text
    assert gateway.merchant.secret_key not in text
    names = {name.lower() for name, _ in sent.headers}
    assert not names & {"authorization", "cookie", "x-lava-metadata", "x-forwarded-for"}
    assert sent.header("x-custom") == "kept"
    assert sent.header("host") == "api.openai.com"
    assert sent.header("accept-encoding") == "br, gzip"
    (row,) = await gateway.rows()
    assert row["metadata"] == {"feature": "chat"}


async def test_a_byok_call_presents_the_callers_own_key(gateway):
    customer = await gateway.customer()
    credential = gateway.token_for(customer, provider_key="sk-own-key")
    async with gateway.forward(CHAT, credential, json=chat()) as answer:
        assert answer.status == 200
    assert gateway.provider.requests[0].header("authorization") == "Bearer sk-own-key"
    (row,) = await gateway.rows()
    assert row["provider_key_type"] == "unmanaged"


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
@pytest.mark.parametrize("stream", [False, True])
async def test_compressed_answers_pass_untouched_and_count_the_same(gateway, encoding, stream):
    customer = await gateway.customer()
    steer = steering_header(prompt_tokens=70, completion_tokens=30, encoding=encoding)
    # A limit within the first step of a hold: a stream that may have to be ended by us is not compressed.
    payload = chat(stream=stream, max_tokens=500, **({"stream_options": {"include_usage": True}} if stream else {}))
    async with gateway.forward(
        CHAT, gateway.token_for(customer), json=payload, headers={"Accept-Encoding": encoding, **steer}
    ) as answer:
        raw = await answer.read()
        assert answer.headers.get("content-encoding", "identity") == encoding
    plain = gzip.decompress(raw) if encoding == "gzip" else raw
    assert b"chatcmpl" in plain
    assert (await gateway.balance(customer)).cycle_nano == 25 * 10**9 - 100 * 20_000


async def test_a_provider_error_passes_through_and_is_not_billed(gateway):
    customer = await gateway.customer()
    async with gateway.forward(
        CHAT, gateway.token_for(customer), json=chat(), headers=steering_header(fault="status:429")
    ) as answer:
        assert answer.status == 429
        assert "error" in await answer.json()
        assert answer.headers["retry-after"]
    balance = await gateway.balance(customer)
    assert (balance.cycle_nano, balance.held_nano) == (25 * 10**9, 0)
    (row,) = await gateway.rows()
    assert (row["status"], row["ending"], row["charge_nano"], row["http_status"]) == ("error", "provider_error", 0, 429)


async def test_an_answer_without_usage_is_counted_and_flagged(gateway):
    customer = await gateway.customer()
    async with gateway.forward(
        CHAT, gateway.token_for(customer), json=chat(stream=True), headers=steering_header(fault="no_usage")
    ) as answer:
        await answer.read()
    (row,) = await gateway.rows()
    assert row["estimated"]
    assert row["usage"]["input_tokens"] > 0
    assert row["usage"]["output_tokens"] > 5
    assert row["charge_nano"] == (row["usage"]["input_tokens"] + row["usage"]["output_tokens"]) * 20_000


async def test_an_error_event_after_200_is_flagged_and_its_text_not_counted(gateway):
    customer = await gateway.customer()
    async with gateway.forward(
        CHAT, gateway.token_for(customer), json=chat(stream=True), headers=steering_header(fault="error_event")
    ) as answer:
        assert answer.status == 200
        assert b"error" in await answer.read()
    (row,) = await gateway.rows()
    assert (row["status"], row["ending"], row["charge_nano"]) == ("error", "error_event", 0)


async def test_a_reset_before_the_first_byte_is_502_and_not_billed(gateway):
    customer = await gateway.customer()
    async with gateway.forward(
        CHAT, gateway.token_for(customer), json=chat(), headers=steering_header(fault="reset_before_first_byte")
    ) as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "upstream_failed"
    balance = await gateway.balance(customer)
    assert (balance.cycle_nano, balance.held_nano) == (25 * 10**9, 0)


async def test_a_cut_stream_is_cut_for_the_client_too_and_what_came_is_billed(gateway):
    customer = await gateway.customer()
    with pytest.raises(Exception, match=r"payload|closed|reset|Connection|TransferEncoding"):
        async with gateway.forward(
            CHAT,
            gateway.token_for(customer),
            json=chat(stream=True),
            headers=steering_header(fault="reset_mid_stream", chunks=40),
        ) as answer:
            await answer.read()
    await settled(gateway, customer)
    (row,) = await gateway.rows()
    assert (row["ending"], row["estimated"]) == ("truncated", True)
    assert row["charge_nano"] > 0


async def settled(gateway, customer):
    for _ in range(300):
        if not (await gateway.balance(customer)).held_nano:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a hold stays open")


async def test_a_client_that_leaves_is_billed_the_providers_own_usage(gateway):
    customer = await gateway.customer()
    steer = steering_header(prompt_tokens=500, completion_tokens=40, chunks=40, chunk_delay_ms=10)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True), headers=steer) as answer:
        await answer.content.readany()
        answer.close()
    await settled(gateway, customer)
    (row,) = await gateway.rows()
    assert (row["ending"], row["status"], row["estimated"]) == ("client_gone", "completed", False)
    assert row["charge_nano"] == 540 * 20_000


async def test_modes_by_field_combination(gateway):

    customer, secret = await gateway.customer(), gateway.merchant.secret_key
    own = {
        "connection_secret": gateway.merchant.self_connection_secret,
        "product_secret": gateway.merchant.self_meter_secret,
    }
    cases = [
        (secret, "merchant"),
        (token(secret_key=secret), "merchant"),
        (token(secret_key=secret, meter_slug="tokens"), "meter_only"),
        (token(secret_key=secret, customer_id=customer.connection_id, meter_slug="tokens"), "customer"),
        (
            token(secret_key=secret, customer_id=customer.connection_id, meter_slug="tokens", disable_billing=True),
            "billing_disabled",
        ),
        (token(secret_key=secret, connection_id=customer.connection_id, meter_id=gateway.meter.meter_id), "customer"),
        (token(secret_key=secret, **own), "customer"),
    ]
    steer = steering_header(prompt_tokens=10, completion_tokens=10)
    for credential, _ in cases:
        async with gateway.forward(CHAT, credential, json=chat(), headers=steer) as answer:
            assert answer.status == 200, await answer.text()
    rows = await gateway.rows()
    assert [row["billing_mode"] for row in rows] == [mode for _, mode in cases]
    charges = [row["charge_nano"] for row in rows]
    assert charges == [0, 0, 0, 400_000, 0, 400_000, 0]
    assert (await gateway.balance(customer)).cycle_nano == 25 * 10**9 - 800_000


async def test_one_idempotency_key_fifty_times_at_once_is_one_call_and_one_debit(gateway):
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    headers = {"Idempotency-Key": "order-17", **steering_header(prompt_tokens=10, completion_tokens=10, delay_ms=100)}

    async def once():
        async with gateway.forward(CHAT, credential, json=chat(), headers=headers) as answer:
            return answer.status, (await answer.json()).get("error", {}).get("code")

    outcomes = await asyncio.gather(*(once() for _ in range(50)))
    assert outcomes.count((200, None)) == 1
    assert {outcome for outcome in outcomes if outcome[0] != 200} <= {
        (409, "request_in_progress"),
        (409, "request_already_made"),
    }
    assert await once() == (409, "request_already_made")
    assert gateway.provider.request_count == 1
    assert (await gateway.balance(customer)).cycle_nano == 25 * 10**9 - 400_000
    async with gateway.forward(CHAT, credential, json=chat(temperature=1), headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (409, "request_id_conflict")


async def test_a_failed_call_gives_its_idempotency_key_back(gateway):
    customer = await gateway.customer()
    headers = {"Idempotency-Key": "order-18"}
    async with gateway.forward(
        CHAT, gateway.token_for(customer), json=chat(), headers={**headers, **steering_header(fault="status:500")}
    ) as answer:
        assert answer.status == 500
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(), headers=headers) as answer:
        assert answer.status == 200


async def test_five_hundred_at_once_never_overspend(gateway):
    """Check 1 in one process: admitted <= floor(B/h), upstream calls = admissions, the rest told apart."""
    payload = chat(max_tokens=100)
    hold_nano = (len(orjson.dumps(payload)) + 100) * 20_000
    customer = await gateway.customer(credit_nano=10 * hold_nano + hold_nano // 2)
    steer = steering_header(prompt_tokens=1, completion_tokens=1, delay_ms=4_000)
    credential = gateway.token_for(customer)

    async def once():
        async with gateway.forward(
            CHAT, credential, data=orjson.dumps(payload), headers={"Content-Type": "application/json", **steer}
        ) as answer:
            return answer.status, (await answer.json()).get("error", {}).get("code")

    outcomes = await asyncio.gather(*(once() for _ in range(500)))
    admitted = outcomes.count((200, None))
    assert 1 <= admitted <= 10
    assert outcomes.count((402, "balance_reserved")) == 500 - admitted
    assert gateway.provider.request_count == admitted
    assert (await gateway.balance(customer)).held_nano == 0


async def test_methods_bodies_and_paths_pass(gateway):
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    async with gateway.forward("https://api.openai.com/v1/models&limit=3", credential, method="GET") as answer:
        assert answer.status == 200
    assert gateway.provider.requests[-1].target == "/v1/models?limit=3"
    import aiohttp

    form = aiohttp.FormData()
    form.add_field("model", "whisper-1")
    form.add_field("file", b"\x00\x01" * 50_000, filename="a.wav", content_type="audio/wav")
    async with gateway.forward("https://api.openai.com/v1/audio/transcriptions", credential, data=form) as answer:
        assert answer.status == 200, await answer.text()

    async def pieces():
        for _ in range(20):
            yield b"x" * 10_000

    async with gateway.forward(
        "https://api.openai.com/v1/files",
        credential,
        data=pieces(),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    ) as answer:
        assert answer.status in (200, 400)
    assert (await gateway.balance(customer)).held_nano == 0


async def test_a_change_reaches_a_cached_principal(gateway):
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    async with gateway.forward(CHAT, credential, json=chat()) as answer:
        assert answer.status == 200
    async with gateway.session.delete(
        f"{gateway.url}/v1/connections/{customer.connection_id}",
        headers={"Authorization": f"Bearer {gateway.merchant.secret_key}"},
    ) as answer:
        assert answer.status == 200
    async with gateway.forward(CHAT, credential, json=chat()) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(("by", "status"), [("connection_secret", 401), ("connection_id", 404)])
async def test_a_deleted_connection_has_one_answer_before_and_after_the_deletion_is_heard_of(gateway, by, status):
    customer = await gateway.customer()
    meter = gateway.meter.meter_secret
    credential = token(secret_key=gateway.merchant.secret_key, meter_secret=meter, **{by: getattr(customer, by)})

    async def answered() -> int:
        async with gateway.forward(CHAT, credential, json=chat()) as answer:
            return answer.status

    assert await answered() == 200
    await gateway.context.wallets.open(customer.wallet, status="deleted", limit_nano=0, create=False)
    assert await answered() == status  # the principal is still cached
    async with gateway.session.delete(
        f"{gateway.url}/v1/connections/{customer.connection_id}",
        headers={"Authorization": f"Bearer {gateway.merchant.secret_key}"},
    ) as answer:
        assert answer.status == 200
    assert await answered() == status
    await asyncio.sleep(0.3)
    assert await answered() == status


async def test_metrics_and_probes(gateway):
    customer = await gateway.customer()
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat()) as answer:
        await answer.read()
    await asyncio.sleep(0.1)  # the settle's acknowledgement is what is counted
    async with gateway.session.get(f"{gateway.url}/metrics") as answer:
        text = await answer.text()
    for name in (
        'obol_requests_total{model="gpt-4o-mini",provider="openai",status="200"} 1.0',
        "obol_gateway_latency_seconds_count 1.0",
        "obol_holds_open 0.0",
        "obol_journal_entries",
        "obol_tokens_total",
        'obol_money_nanodollars_total{kind="charge"}',
        "obol_upstream_connections 1.0",
        'obol_principal_cache_total{result="miss"}',
    ):
        assert name in text, name
    for path in ("/healthz", "/readyz"):
        async with gateway.session.get(f"{gateway.url}{path}") as answer:
            assert answer.status == 200, await answer.text()


async def test_the_balance_read_after_the_answer_has_the_charge(gateway):
    """Whoever has seen the end of an answer finds the call in the balance."""
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    steer = steering_header(prompt_tokens=10, completion_tokens=10)
    for count in range(1, 30):
        async with gateway.forward(CHAT, credential, json=chat(stream=count % 2 == 0), headers=steer) as answer:
            await answer.read()
        assert (await gateway.balance(customer)).cycle_nano == 25 * 10**9 - count * 400_000


async def test_a_first_page_has_the_call_that_was_just_answered(gateway):
    customer = await gateway.customer()
    flushing = asyncio.ensure_future(_flush_for(gateway, 3))
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat()) as answer:
        request_id = answer.headers["x-lava-request-id"]
        await answer.read()
    headers = {"Authorization": f"Bearer {gateway.merchant.secret_key}"}
    async with gateway.session.get(f"{gateway.url}/v1/requests?limit=1", headers=headers) as answer:
        assert [row["request_id"] for row in (await answer.json())["data"]] == [request_id]
    flushing.cancel()


async def _flush_for(gateway, seconds):
    for _ in range(int(seconds / 0.1)):
        await asyncio.sleep(0.1)
        await gateway.flusher.flush_once()
