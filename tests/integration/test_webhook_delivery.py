"""Webhooks are delivered: at least once, in order for each customer, to receivers that do their worst."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
from webhook_support import Shop, clean_shop, shared_shop  # noqa: F401

from gateway.billing import outbox
from gateway.webhooks import deliverer, metrics
from gateway.webhooks.sender import Outcome

pytestmark = pytest.mark.asyncio(loop_scope="module")
DELETED: outbox.Event = "connection.deleted"
CREATED: outbox.Event = "connection.created"


def told(here: Shop) -> list[str]:
    return [event["event"] for event in here.receiver.events()]


def ids(here: Shop) -> list[str]:
    return [each.event["id"] for each in here.receiver.received]


# Receivers at their worst


@pytest.mark.parametrize("fault", [500, 404, 302, 307, "hang", "drop"])
async def test_what_fails_is_sent_again_as_it_was(here: Shop, fault: int | str) -> None:
    endpoint = await here.endpoint()
    here.receiver.script.append(fault)
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    (waiting,) = await here.log(endpoint["webhook_id"])
    assert (waiting["status"], waiting["attempts"]) == ("waiting", 1)
    assert waiting["last_status_code"] == (fault if isinstance(fault, int) else None)
    assert waiting["last_error"]
    assert await here.value("SELECT due_at - last_attempt_at > '59 s' FROM webhook_deliveries")
    await here.later()
    await here.deliver()
    first, second = here.receiver.received
    assert (first.path, first.body) == (second.path, second.body) == ("/hook", first.body)
    (delivered,) = await here.log(endpoint["webhook_id"])
    assert (delivered["status"], delivered["attempts"], delivered["last_status_code"]) == ("delivered", 2, 200)
    assert (delivered["last_error"], delivered["next_attempt_at"]) == (None, None)


async def test_a_receiver_that_is_away_gets_everything_in_order_when_it_is_back(here: Shop) -> None:
    customers = [await here.api.new_customer(f"away-{number}") for number in range(3)]
    await here.endpoint()
    await here.receiver.stop()
    for event in (CREATED, "subscription.updated", DELETED):
        for customer in customers:
            await here.tell(customer, event)
        await here.deliver()
    await here.receiver.start()
    await here.later()
    await here.deliver()
    for customer in customers:
        events = here.receiver.events(customer.connection_id)
        assert [event["event"] for event in events] == [CREATED, "subscription.updated", DELETED]


async def test_one_customers_events_wait_for_each_other_and_for_nobody_elses(here: Shop) -> None:
    other = await here.api.new_customer("other")
    await here.endpoint()
    here.receiver.script.append(500)
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    await here.tell(here.api.customer, DELETED)
    await here.tell(other, CREATED)
    await here.deliver()
    mine = [event["event"] for event in here.receiver.events(here.api.customer.connection_id)]
    assert (mine, len(here.receiver.events(other.connection_id))) == ([CREATED], 1)
    await here.later()
    await here.deliver()
    mine = [event["event"] for event in here.receiver.events(here.api.customer.connection_id)]
    assert mine == [CREATED, CREATED, DELETED]


async def test_what_fails_to_the_end_is_dead_and_the_next_goes(here: Shop) -> None:
    endpoint = await here.endpoint()
    here.receiver.always = 503
    await here.tell(here.api.customer, CREATED)
    async with here.another_worker(webhook_retry_s=(60, 300)) as worker:
        here.deliverer, usual = worker, here.deliverer
        waits, dead_before = [], _attempts("dead")
        for _ in range(3):
            await here.later()
            await here.deliver()
            waits.append(
                await here.value("SELECT extract(epoch FROM due_at - last_attempt_at) FROM webhook_deliveries")
            )
        here.deliverer = usual
    assert [round(float(each)) for each in waits[:2]] == [60, 300]
    assert _attempts("dead") == dead_before + 1
    (dead,) = await here.log(endpoint["webhook_id"], status="dead")
    assert (dead["attempts"], dead["last_status_code"], dead["next_attempt_at"]) == (3, 503, None)
    shown = (await here.api.call("GET", f"/v1/webhooks/{endpoint['webhook_id']}")).body
    assert (shown["status"], shown["paused_reason"]) == ("paused", "failing"), "nothing reached it in all that time"
    assert shown["failing_since"]
    here.receiver.always = 200
    await here.api.call("PATCH", f"/v1/webhooks/{endpoint['webhook_id']}", {"status": "active"})
    await here.tell(here.api.customer, DELETED)
    await here.deliver()
    assert told(here)[3:] == [DELETED]
    resent = await here.api.call("POST", f"/v1/webhooks/{endpoint['webhook_id']}/deliveries/{dead['event_id']}/resend")
    assert (resent.status, resent.body["status"]) == (200, "waiting")
    await here.deliver()
    assert told(here)[3:] == [DELETED, CREATED]


def _attempts(outcome: str) -> float:
    return metrics.ATTEMPTS.labels(outcome)._value.get()


async def test_an_endpoint_that_reaches_others_is_not_paused_for_one_dead_event(here: Shop) -> None:
    other = await here.api.new_customer("reached")
    endpoint = await here.endpoint()
    await here.tell(here.api.customer, CREATED)
    async with here.another_worker(webhook_retry_s=(1, 1)) as worker:
        here.deliverer, usual = worker, here.deliverer
        here.receiver.script.append(500)
        await here.deliver()
        await here.tell(other, CREATED)
        await here.deliver()
        for _ in range(2):  # the first of them says again that the endpoint fails
            here.receiver.script.append(500)
            await here.later()
            await here.deliver()
        here.deliverer = usual
    assert len(await here.log(endpoint["webhook_id"], status="dead")) == 1
    assert (await here.api.call("GET", f"/v1/webhooks/{endpoint['webhook_id']}")).body["status"] == "active"


async def test_an_endpoint_that_is_gone_is_paused_and_goes_on_where_it_was(here: Shop) -> None:
    endpoint = await here.endpoint()
    here.receiver.script.append(410)
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    await here.later()
    await here.deliver()
    assert len(here.receiver.received) == 1
    shown = (await here.api.call("GET", f"/v1/webhooks/{endpoint['webhook_id']}")).body
    assert (shown["status"], shown["paused_reason"]) == ("paused", "gone")
    await here.execute("UPDATE webhook_lanes SET due_at = now() + interval '1 hour'")
    await here.api.call("PATCH", f"/v1/webhooks/{endpoint['webhook_id']}", {"status": "active"})
    await here.deliver()
    assert told(here) == [CREATED, CREATED]


async def test_a_flood_of_an_answer_is_delivered_and_cut(here: Shop) -> None:
    endpoint = await here.endpoint()
    here.receiver.script.append("flood")
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    assert (await here.log(endpoint["webhook_id"]))[0]["status"] == "delivered"


async def test_an_endpoint_that_hangs_has_few_calls_and_is_not_in_the_way(here: Shop) -> None:
    customers = [await here.api.new_customer(f"hangs-{number}") for number in range(8)]
    hangs, answers = await here.endpoint("/hangs", events=[CREATED]), await here.endpoint("/answers", events=[DELETED])
    here.receiver.always = "hang"
    for customer in customers:
        await here.tell(customer, CREATED)
    assert await here.deliverer.deliver_due()
    while len(here.receiver.received) < 4:
        await asyncio.sleep(0.002)
    assert not await here.deliverer.deliver_due()
    here.receiver.always = 200
    await here.tell(customers[0], DELETED)
    assert await here.deliverer.deliver_due()
    await here.deliver()
    assert here.receiver.most_at_once == 5
    assert (await here.log(answers["webhook_id"]))[0]["status"] == "delivered"
    assert len(await here.log(hangs["webhook_id"])) == 8


async def test_an_endpoint_that_fails_has_one_call_at_once(here: Shop) -> None:
    customers = [await here.api.new_customer(f"fails-{number}") for number in range(2)]
    await here.endpoint()
    await here.execute("UPDATE webhooks SET failing_since = now()")
    here.receiver.script.extend(["hang", 500])
    for customer in customers:
        await here.tell(customer, CREATED)
    await here.deliver()
    assert (len(here.receiver.received), here.receiver.most_at_once) == (2, 1)
    await here.later()
    await here.deliver()
    assert await here.value("SELECT failing_since IS NULL FROM webhooks")


# Workers


async def test_two_workers_send_each_event_once(here: Shop) -> None:
    customers = [await here.api.new_customer(f"two-{number}") for number in range(6)]
    await here.endpoint()
    for event in (CREATED, "subscription.updated", "subscription.updated", DELETED):
        for customer in customers:
            await here.tell(customer, event)
    async with here.another_worker() as other:
        while sum([await here.deliverer.deliver_due(), await other.deliver_due()]) or other.under_way:
            await asyncio.sleep(0.002)
        await here.deliver()
    assert len(ids(here)) == len(set(ids(here))) == 24
    for customer in customers:
        events = [event["event"] for event in here.receiver.events(customer.connection_id)]
        assert events == [CREATED, "subscription.updated", "subscription.updated", DELETED]
    assert await here.value("SELECT count(*) FROM webhook_lanes") == 0


async def test_the_claim_of_a_dead_worker_comes_back_and_its_last_word_counts_for_nothing(here: Shop) -> None:
    endpoint = await here.endpoint()
    await here.tell(here.api.customer, CREATED)
    claims = here.deliverer._claims
    (dead,) = await claims.take(10, {})
    assert await claims.take(10, {}) == []
    back = await here.value("SELECT due_at - now() FROM webhook_lanes")
    assert 0 < back.total_seconds() < 60
    await here.later()
    await here.deliver()
    assert told(here) == [CREATED]
    await here.tell(here.api.customer, DELETED)
    await claims.failed(dead, 500, "too late", 60)
    await here.deliver()
    assert told(here) == [CREATED, DELETED]
    await claims.delivered(dead, 200)
    kept = await here.value("SELECT body FROM webhook_deliveries ORDER BY sequence LIMIT 1")
    assert await claims.keep_body(dead, "another body") == kept
    assert [each["attempts"] for each in await here.log(endpoint["webhook_id"])] == [1, 2]


async def test_what_was_cut_off_by_the_end_of_a_worker_is_sent_again(here: Shop) -> None:
    await here.endpoint()
    here.receiver.script.append("hang")
    await here.tell(here.api.customer, CREATED)
    async with here.another_worker(webhook_timeout_ms=30_000) as worker:
        await worker.deliver_due()
        while not here.receiver.received:
            await asyncio.sleep(0.002)
        worker._attempts.drain = lambda _: _cancelled(worker)  # not the three seconds that a stop waits
    await here.later()
    await here.deliver()
    first, second = here.receiver.received
    assert first.body == second.body


async def _cancelled(worker: Any) -> None:
    for task in worker._attempts._tasks:
        task.cancel()
    await asyncio.sleep(0.01)


async def test_a_balance_that_is_not_known_postpones_the_event(here: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await here.endpoint()
    await here.tell(here.api.customer, CREATED)
    with monkeypatch.context() as patched:
        patched.setattr(here.deliverer._messages._wallets, "balances", _no_balances)
        await here.deliver()
    (waiting,) = await here.log(endpoint["webhook_id"])
    assert (waiting["status"], waiting["attempts"]) == ("waiting", 0)
    assert await here.value("SELECT first_attempt_at IS NULL FROM webhook_deliveries")
    with monkeypatch.context() as patched:
        patched.setattr(here.deliverer._messages._wallets, "balances", _no_balances)
        await here.execute("UPDATE webhook_deliveries SET created_at = now() - interval '4 days'")
        await here.later()
        await here.deliver()
    (waiting,) = await here.log(endpoint["webhook_id"])
    assert (waiting["status"], waiting["attempts"]) == ("waiting", 1), "not for ever"
    await here.later()
    await here.deliver()
    assert told(here) == [CREATED]


async def _no_balances(_: object) -> list[None]:
    return [None]


# What is over


async def test_a_deleted_connection_is_shown_and_a_deleted_endpoint_is_left_alone(here: Shop) -> None:
    customer = await here.api.new_customer("leaves")
    kept, gone = await here.endpoint("/kept"), await here.endpoint("/gone")
    assert (await here.api.call("DELETE", f"/v1/customers/{customer.connection_id}")).status == 200
    await here.execute("DELETE FROM webhook_deliveries")
    await here.tell(customer, DELETED)
    assert (await here.api.call("DELETE", f"/v1/webhooks/{gone['webhook_id']}")).status == 200
    await here.later()
    await here.deliver()
    (received,) = here.receiver.received
    assert (received.path, received.event["data"]["reference_id"]) == ("/kept", "leaves")
    assert [each["status"] for each in await here.log(kept["webhook_id"])] == ["delivered"]
    await here.deliverer.tidy()
    assert await here.value("SELECT status FROM webhook_deliveries WHERE webhook_id = $1", gone["webhook_id"]) == "dead"


async def test_a_deletion_waits_for_nobody_and_what_waited_is_cleared_away(
    here: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    customers = [await here.api.new_customer(f"cleared-{number}") for number in range(5)]
    endpoint, sql = await here.endpoint(), here.api.store.sql
    for customer in customers:
        await here.tell(customer, CREATED)
    (claim,) = await here.deliverer._claims.take(1, {})
    async with here.api.store.transaction() as db, asyncio.timeout(5):  # a worker that records what became of one
        await db.fetchrow(sql("webhooks.lock_lane"), *claim.lane, claim.claim)
        assert (await here.api.call("DELETE", f"/v1/webhooks/{endpoint['webhook_id']}")).status == 200
        await db.execute(sql("webhooks.fails"), endpoint["webhook_id"], claim.attempted_at)
        monkeypatch.setattr(deliverer, "FORGET_PAGE", 2)
        pages = 1
        while await here.deliverer.tidy():
            pages += 1
    assert pages == 3
    assert await here.value("SELECT count(*) FROM webhook_deliveries WHERE status = 'dead'") == 5
    assert await here.value("SELECT array_agg(connection_id) FROM webhook_lanes") == [claim.connection_id]
    await here.deliverer.tidy()
    assert await here.value("SELECT count(*) FROM webhook_lanes") == 0
    await here.deliver()
    assert here.receiver.received == []


async def test_names_that_are_never_resolved_hold_up_no_other(here: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, known, stream = threading.Event(), "hooks.example.com", (socket.AF_INET, socket.SOCK_STREAM, 6, "")

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        assert host == known or answer.wait(10)
        return [(*stream, ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with here.another_worker(webhook_private_hosts=(known,), webhook_timeout_ms=5_000) as worker:
        post = worker._sender.post
        hanging = [asyncio.ensure_future(post(f"https://silent-{n}.example.com/", [], b"{}")) for n in range(20)]
        await asyncio.sleep(0)
        assert await post(f"http://{known}:{here.receiver.port}/", [], b"{}") == Outcome(200, None)
        answer.set()
        assert {(await each).ours for each in hanging} == {False}


async def test_the_log_is_forgotten_and_what_waits_for_a_paused_endpoint_expires(here: Shop) -> None:
    endpoint = await here.endpoint()
    await here.tell(here.api.customer, CREATED)
    await here.deliver()
    here.receiver.script.append(410)
    await here.tell(here.api.customer, DELETED)
    await here.deliver()
    await here.deliverer.tidy()
    assert (metrics.WAITING._value.get(), metrics.OLDEST_S._value.get() < 60) == (1, True)
    assert len(await here.log(endpoint["webhook_id"])) == 2
    old = "SET created_at = now() - interval '8 days', finished_at = finished_at - interval '8 days'"
    await here.execute(f"UPDATE webhook_deliveries {old}")
    await here.deliverer.tidy()
    (left,) = await here.log(endpoint["webhook_id"])
    assert (left["event"], left["status"]) == (DELETED, "dead")


async def test_an_event_that_cannot_be_written_does_not_block_for_ever(here: Shop) -> None:
    await here.endpoint()
    async with here.api.store.transaction() as db:
        await outbox.tell(db, here.api.merchant.merchant_id, CREATED, "con_unknown")
    await here.deliver()
    failed = await here.value("SELECT last_error FROM webhook_deliveries WHERE attempts = 1 AND status = 'waiting'")
    assert failed == "the event could not be written"
