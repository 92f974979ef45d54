"""What webhooks say, when, where to, and how it is signed."""

from __future__ import annotations

import asyncio
import hmac
import socket
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from certificates import Authority, serving
from webhook_support import Received, Shop, clean_shop, shared_shop  # noqa: F401

from gateway.billing import outbox
from gateway.webhooks.sender import Outcome

pytestmark = pytest.mark.asyncio(loop_scope="module")
DELETED: outbox.Event = "connection.deleted"
CREATED: outbox.Event = "connection.created"
BALANCE = "connection.wallet.balance.updated"


def told(here: Shop) -> list[str]:
    return [event["event"] for event in here.receiver.events()]


def verify(received: Received, secret: str) -> None:
    signature = hmac.new(secret.encode(), received.body, "sha256").hexdigest()
    assert received.headers["x-webhook-signature"] == received.headers["x-lava-signature"] == signature
    assert received.headers["webhook-signature"] == standard(received, secret)


def standard(received: Received, secret: str) -> str:
    text = f"{received.event['id']}.{received.headers['webhook-timestamp']}.{received.body.decode()}"
    made = hmac.new(b64decode(secret.removeprefix("whsec_")), text.encode(), "sha256").digest()
    return f"v1,{b64encode(made).decode()}"


# What is sent


async def test_an_event_shows_the_connection_as_the_api_does(here: Shop) -> None:
    endpoint, customer = await here.endpoint("/hook?token=1"), here.api.customer
    await here.tell(customer, CREATED)
    await here.deliver()
    (received,) = here.receiver.received
    event = received.event
    assert (received.path, received.headers["content-type"]) == ("/hook?token=1", "application/json")
    assert list(event) == ["id", "event", "type", "created_at", "data"]
    assert event["event"] == event["type"] == "connection.created"
    assert event["id"] == received.headers["webhook-id"]
    assert event["id"].startswith("evt_")
    shown = (await here.api.call("GET", f"/v1/connections/{customer.connection_id}")).body
    aliases = {"balance": "0.0000000000", "customer_secret": customer.connection_secret}
    aliases |= {"connectionId": customer.connection_id, "customerId": customer.connection_id}
    assert event["data"] == shown | aliases
    assert b'": ' not in received.body
    verify(received, endpoint["webhook_secret"])


async def test_no_table_holds_the_connection_secret(here: Shop) -> None:
    await here.endpoint()
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    body = await here.value("SELECT body FROM webhook_deliveries")
    assert here.api.customer.connection_secret not in body
    assert here.api.customer.connection_secret.encode() in here.receiver.received[0].body


async def test_an_endpoint_names_and_chooses_its_events(here: Shop) -> None:
    await here.endpoint("/customers", event_style="customer")
    await here.endpoint("/deleted", events=["customer.deleted"])
    for event in (CREATED, DELETED, "checkout.completed"):
        await here.tell(here.api.customer, event)
    await here.deliver()
    by_path: dict[str, list[str]] = {}
    for each in here.receiver.received:
        by_path.setdefault(each.path, []).append(each.event["type"])
    assert by_path == {
        "/customers": ["customer.created", "customer.deleted", "checkout.completed"],
        "/deleted": ["connection.deleted"],
    }


async def test_what_is_told_besides_stands_above_the_connection(here: Shop) -> None:
    await here.endpoint()
    data = {"checkout_session_id": "cs_1", "currency": "USD", "customer_secret": ""}
    await here.tell(here.api.customer, "checkout.completed", data)
    await here.deliver()
    (event,) = here.receiver.events()
    assert event["data"].items() >= {"checkout_session_id": "cs_1", "currency": "USD"}.items()
    assert event["data"]["customer_secret"] == here.api.customer.connection_secret


async def test_nothing_is_written_where_nobody_listens(here: Shop) -> None:
    paused, chooses = await here.endpoint(), await here.endpoint(events=[DELETED])
    await here.api.call("PATCH", f"/v1/webhooks/{paused['webhook_id']}", {"status": "paused"})
    other = await here.api.accounts.create_merchant(f"acc_{paused['webhook_id']}", "live", "Other")
    async with here.api.store.transaction() as db:
        await outbox.tell(db, other.merchant_id, CREATED, other.self_connection_id)
    await here.tell(here.api.customer, CREATED)
    assert await here.value("SELECT count(*) FROM webhook_deliveries") == 0
    await here.tell(here.api.customer, DELETED)
    assert await here.value("SELECT array_agg(webhook_id) FROM webhook_deliveries") == [chooses["webhook_id"]]


async def test_an_event_is_told_only_of_what_was_committed(here: Shop) -> None:
    await here.endpoint()
    with pytest.raises(RuntimeError, match="taken back"):
        async with here.api.store.transaction() as db:
            await outbox.tell(db, here.api.merchant.merchant_id, CREATED, here.api.customer.connection_id)
            raise RuntimeError("taken back")
    await here.deliver()
    assert here.receiver.received == []


# Balances


async def test_charges_are_told_once_a_second_with_the_balance_of_then(here: Shop) -> None:
    customer = await here.api.new_customer("balances")
    await here.endpoint()
    for number in range(3):
        await here.api.report(f"b-{number}", connection_secret=customer.connection_secret, input_tokens=1_000_000)
        await here.api.flush()
    await here.deliver()
    assert here.receiver.received == [], "a second has not passed"
    await here.api.report("b-3", connection_secret=customer.connection_secret, input_tokens=1_000_000)
    await here.later()
    await here.deliver()
    (event,) = here.receiver.events()
    assert (event["event"], event["data"]["connection_id"]) == (BALANCE, customer.connection_id)
    assert event["data"]["balance"] == event["data"]["wallet"]["balance"] == "-8.0000000000"
    await here.api.flush()  # the last charge is recorded after its balance was told: told again
    await here.later()
    await here.deliver()
    assert told(here) == [BALANCE] * 2


async def test_a_change_while_one_is_being_told_is_another_event(here: Shop) -> None:
    customer = await here.api.new_customer("changes")
    await here.endpoint()
    here.receiver.script.extend(["hang"])
    await _charge(here, customer.connection_secret, "c-1")
    await here.later()
    assert await here.deliverer.deliver_due()
    while not here.receiver.received:
        await asyncio.sleep(0.002)
    await _charge(here, customer.connection_secret, "c-2")
    assert await here.value("SELECT count(*) FROM webhook_deliveries WHERE status = 'waiting'") == 2
    await here.deliver()
    await here.later()
    await here.deliver()
    await here.later()
    await here.deliver()
    balances = [event["data"]["balance"] for event in here.receiver.events()]
    assert balances == ["-2.0000000000", "-2.0000000000", "-4.0000000000"], "the body stays over retries"


async def _charge(here: Shop, secret: str, request_id: str) -> None:
    await here.api.report(request_id, connection_secret=secret, input_tokens=1_000_000)
    await here.api.flush()


async def test_the_merchants_own_wallet_and_free_calls_are_not_told(here: Shop) -> None:
    await here.endpoint()
    await here.api.report("own-1", connection_secret=here.api.merchant.self_connection_secret, input_tokens=9)
    zero = await here.api.new_meter("zero", {"tiers": [{"start": 0, "rate": "0"}]})
    await here.api.report("free-1", product_secret=zero.meter_secret, input_tokens=9)
    await here.api.flush()
    assert await here.value("SELECT count(*) FROM requests WHERE request_id IN ('own-1', 'free-1')") == 2
    assert await here.value("SELECT count(*) FROM webhook_deliveries") == 0


# Where to, and with which secret


async def test_addresses_are_checked_again_when_it_is_sent(here: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await here.endpoint()
    hosts = {"hooks.example.com": "10.0.0.1", "meta.example.com": "169.254.169.254"}
    stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: [(*stream, (hosts[host], 443))])
    for host in hosts:
        await here.execute("UPDATE webhooks SET url = $1", f"https://{host}/")
        await here.tell(here.api.customer, CREATED)
        await here.later()
        await here.deliver()
        log = await here.log(endpoint["webhook_id"])
        assert log[0]["last_error"] == f"The target's host {host} has an address that is not public"
        await here.execute("DELETE FROM webhook_deliveries")
    async with here.another_worker(webhook_private_hosts=()) as strict:
        await here.execute("UPDATE webhooks SET url = $1", here.receiver.url())
        outcome = await strict._sender.post(here.receiver.url(), [], b"{}")
    assert "must start with https" in (outcome.error or "")
    assert here.receiver.received == []


async def test_an_endpoint_has_to_prove_its_name(here: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority, host = Authority(tmp_path / "authority"), "hooks.example.com"
    stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda _host, port, *_, **__: [(*stream, ("127.0.0.1", port))])
    changes = {"webhook_private_hosts": (host,), "upstream_ca_file": str(authority.file), "webhook_timeout_ms": 5_000}
    async with (
        here.another_worker(**changes) as worker,
        serving(authority.certified(host)) as good,
        serving(authority.self_signed(host)) as bad,
    ):
        assert await worker._sender.post(f"https://{host}:{good.port}/h", [], b"{}") == Outcome(200, None)
        refused = await worker._sender.post(f"https://{host}:{bad.port}/h", [], b"{}")
    assert refused.error is not None
    assert "did not prove who it is" in refused.error
    assert (good.data[:16], bad.data) == (b"POST /h HTTP/1.1", b"")


async def test_after_a_rotation_both_secrets_sign_for_a_day(here: Shop) -> None:
    endpoint = await here.endpoint()
    rotated = (await here.api.call("POST", f"/v1/webhooks/{endpoint['webhook_id']}/rotate")).body
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    await here.execute("UPDATE webhooks SET secret_rotated_at = now() - interval '25 hours'")
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    young, old = here.receiver.received
    before = hmac.new(endpoint["webhook_secret"].encode(), young.body, "sha256").hexdigest()
    assert young.headers["x-webhook-signature-previous"] == before
    assert len(young.headers["webhook-signature"].split(" ")) == 2
    assert "x-webhook-signature-previous" not in old.headers
    verify(old, rotated["webhook_secret"])


async def test_after_several_rotations_within_a_day_the_first_secret_signs_too(here: Shop) -> None:
    endpoint = await here.endpoint()
    path, secrets = f"/v1/webhooks/{endpoint['webhook_id']}/rotate", [endpoint["webhook_secret"]]
    for _ in range(3):
        secrets.append((await here.api.call("POST", path)).body["webhook_secret"])
        if len(secrets) == 2:  # as a version that does not know of it leaves it
            await here.execute("UPDATE webhooks SET secret_number_before = NULL")
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    (young,) = here.receiver.received
    kept = [standard(young, each) for each in (secrets[3], secrets[2], secrets[0])]
    assert young.headers["webhook-signature"].split(" ") == kept
    first = hmac.new(secrets[0].encode(), young.body, "sha256").hexdigest()
    assert young.headers["x-webhook-signature-previous"] == first
    await here.execute("UPDATE webhooks SET secret_rotated_at = now() - interval '25 hours'")
    secrets.append((await here.api.call("POST", path)).body["webhook_secret"])
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    old = here.receiver.received[-1]
    assert old.headers["webhook-signature"].split(" ") == [standard(old, each) for each in reversed(secrets[3:])]
