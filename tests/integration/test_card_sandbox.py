"""The sandbox of the cards: the usual numbers, each charge once, and the truth for whoever asks after a kill."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from gateway.cards import card_entry, sandbox_cards
from gateway.cards.choice import Cards, opened
from gateway.cards.contract import (
    BadSignature,
    ChargeOrder,
    ChargeResult,
    OrderChanged,
    OutcomeUnknown,
    ProcessorRefused,
    SetupResult,
)
from gateway.cards.sandbox import Sandbox
from gateway.errors import ObolError
from gateway.settings import Settings
from gateway.store.postgres import Store

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD, DECLINED, LATER, ALWAYS = "4242424242424242", "4000000000000002", "4000000000000341", "4000002760003184"
TODAY = date(2026, 11, 23)
ids = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(engines: tuple[str, str]) -> AsyncIterator[Store]:
    """Its connections are open already: otherwise those who come at once would wait in line for the first."""
    running = await Store.connect(engines[1])
    async with AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(running.connection())
    yield running
    await running.close()


@pytest.fixture
def sandbox(store: Store) -> Sandbox:
    return Sandbox(store)


def entry(number: str) -> card_entry.CardEntry:
    return card_entry.read(number, "12/30", "1234" if number.startswith("37") else "123", TODAY)


async def added(sandbox: Sandbox, number: str, customer: str = "cus_sandbox_1") -> str:
    setup = await sandbox.begin_setup(f"set_{next(ids)}", customer)
    result = await sandbox.enter_card(setup.ref, entry(number))
    if result.status == "requires_action":
        result = await sandbox.authenticate_setup(setup.ref, approved=True)
    assert result.card is not None
    return result.card.method_ref


async def order(sandbox: Sandbox, number: str = GOOD, **changes: Any) -> ChargeOrder:
    values: dict[str, Any] = {
        "charge_id": f"chg_{next(ids)}",
        "customer_ref": "cus_sandbox_1",
        "amount_cents": 500,
        "description": "Overage",
        "merchant_id": "mer_1",
    }
    method = changes.pop("method_ref", None) or await added(sandbox, number)
    return ChargeOrder(method_ref=method, **values | changes)


# Adding a card


async def test_a_good_card_is_added_and_the_first_one_stays(sandbox: Sandbox):
    customer = await sandbox.customer("pay_1", email="a@example.com", name="Ann", phone=None)
    assert customer == await sandbox.customer("pay_1", email=None, name=None, phone=None)
    setup = await sandbox.begin_setup("set_a", customer)
    assert await sandbox.begin_setup("set_a", customer) == setup
    assert await sandbox.finish_setup(setup.ref) == SetupResult("pending")
    first = await sandbox.enter_card(setup.ref, entry(GOOD))
    assert first.card is not None
    assert (first.status, first.card.brand, first.card.last4) == ("succeeded", "visa", "4242")
    assert await sandbox.enter_card(setup.ref, entry("5555555555554444")) == first
    assert await sandbox.finish_setup(setup.ref) == first
    with pytest.raises(OrderChanged):
        await sandbox.begin_setup("set_a", "cus_sandbox_other")
    with pytest.raises(ProcessorRefused, match="setup_ref"):
        await sandbox.finish_setup("seti_sandbox_none")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (DECLINED, "generic_decline"),
        ("4000000000009995", "insufficient_funds"),
        ("4000000000009987", "lost_card"),
        ("4000000000009979", "stolen_card"),
        ("4000000000000069", "expired_card"),
        ("4000000000000127", "incorrect_cvc"),
        ("4000000000000119", "processing_error"),
        ("4000000000006975", "card_velocity_exceeded"),
        ("4100000000000019", "fraudulent"),
    ],
)
async def test_a_bad_card_is_declined_and_a_better_one_may_follow(sandbox: Sandbox, number: str, code: str):
    setup = await sandbox.begin_setup(f"set_{next(ids)}", "cus_sandbox_1")
    assert await sandbox.enter_card(setup.ref, entry(number)) == SetupResult("declined", decline_code=code)
    assert await sandbox.finish_setup(setup.ref) == SetupResult("declined", decline_code=code)
    assert (await sandbox.enter_card(setup.ref, entry(GOOD))).status == "succeeded"


async def test_the_bank_asks_the_customer_before_a_card_is_added(sandbox: Sandbox):
    for number in ("4000002500003155", ALWAYS, "4000008260003178"):
        setup = await sandbox.begin_setup(f"set_{next(ids)}", "cus_sandbox_1")
        assert await sandbox.authenticate_setup(setup.ref, approved=True) == SetupResult("pending")
        assert await sandbox.enter_card(setup.ref, entry(number)) == SetupResult("requires_action")
        refused = await sandbox.authenticate_setup(setup.ref, approved=False)
        assert refused == SetupResult("declined", decline_code="authentication_failed")
        await sandbox.enter_card(setup.ref, entry(number))
        assert (await sandbox.authenticate_setup(setup.ref, approved=True)).status == "succeeded"


async def test_no_number_is_kept(sandbox: Sandbox, engines: tuple[str, str]):
    await sandbox.charge(await order(sandbox, LATER))
    connection = await asyncpg.connect(engines[1])
    tables = await connection.fetch("SELECT relname FROM pg_class WHERE relname LIKE 'sandbox_%' AND relkind = 'r'")
    kept = "".join([str(await connection.fetch(f"SELECT * FROM {row['relname']}")) for row in tables])
    await connection.close()
    assert "_0341_122030_" in kept
    assert LATER not in kept
    assert LATER[:12] not in kept


# Charging it


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [
        (GOOD, "succeeded", None),
        ("378282246310005", "succeeded", None),
        ("4000002500003155", "succeeded", None),
        (LATER, "declined", "generic_decline"),
        ("4000008260003178", "declined", "insufficient_funds"),
        (ALWAYS, "requires_action", "authentication_required"),
    ],
)
async def test_a_charge_is_made_once_and_found(sandbox: Sandbox, store: Store, number: str, status: str, code: str):
    wanted = await order(sandbox, number)
    assert await sandbox.find(wanted, 0) is None
    result = await sandbox.charge(wanted)
    assert (result.status, result.decline_code) == (status, code)
    assert await sandbox.charge(wanted) == result
    assert await Sandbox(store).find(wanted, 0) == result


async def test_fifty_at_once_charge_once(sandbox: Sandbox, engines: tuple[str, str]):
    wanted = await order(sandbox)
    results = await asyncio.gather(*(sandbox.charge(wanted) for _ in range(50)))
    assert len(set(results)) == 1
    connection = await asyncpg.connect(engines[1])
    cents = await connection.fetch("SELECT amount_cents FROM sandbox_charges WHERE charge_id = $1", wanted.charge_id)
    await connection.close()
    assert [row["amount_cents"] for row in cents] == [500]


@pytest.mark.parametrize("field", ["amount_cents", "customer_ref", "method_ref"])
async def test_an_order_that_changed_under_its_id_is_an_error(sandbox: Sandbox, field: str):
    first = await order(sandbox)
    done = await sandbox.charge(first)
    other: Any = {"amount_cents": 501, "customer_ref": "cus_sandbox_2", "method_ref": await added(sandbox, GOOD)}
    with pytest.raises(OrderChanged, match=first.charge_id):
        await sandbox.charge(msgspec.structs.replace(first, **{field: other[field]}))
    assert await sandbox.find(first, 0) == done


@pytest.mark.parametrize(
    "changes",
    [{"amount_cents": 49}, {"amount_cents": 100_000_000}, {"amount_cents": -500}, {"currency": "eur"}],
)
async def test_what_cannot_be_charged_is_refused_by_its_name(sandbox: Sandbox, changes: dict[str, Any]):
    wanted = await order(sandbox, **changes)
    with pytest.raises(ProcessorRefused, match=next(iter(changes))):
        await sandbox.charge(wanted)
    assert await sandbox.find(wanted, 0) is None


async def test_a_card_of_another_customer_or_of_no_sandbox_is_refused(sandbox: Sandbox):
    for changes in ({"customer_ref": "cus_sandbox_thief"}, {"method_ref": "pm_1"}):
        with pytest.raises(ProcessorRefused, match="method_ref"):
            await sandbox.charge(await order(sandbox, **changes))


async def test_a_card_that_was_removed_or_has_expired_is_declined(sandbox: Sandbox, store: Store):
    removed = await order(sandbox)
    await sandbox.detach(removed.method_ref)
    await sandbox.detach(removed.method_ref)
    assert (await sandbox.charge(removed)).decline_code == "card_removed"
    later = Sandbox(store, now=lambda: datetime(2031, 1, 1, tzinfo=UTC))
    assert (await later.charge(await order(sandbox))).decline_code == "expired_card"
    last_day = Sandbox(store, now=lambda: datetime(2030, 12, 31, tzinfo=UTC))
    assert (await last_day.charge(await order(sandbox))).status == "succeeded"


async def test_a_card_known_by_its_reference_alone_can_be_charged(sandbox: Sandbox):
    ref = sandbox_cards.method_ref(entry(GOOD), "seeded")
    assert (await sandbox.charge(await order(sandbox, method_ref=ref))).status == "succeeded"


async def test_the_customer_authenticates_a_charge_that_waits(sandbox: Sandbox):
    wanted = await order(sandbox, ALWAYS)
    waiting = await sandbox.charge(wanted)
    assert waiting.action_url_or_secret
    paid = await sandbox.authenticate_charge(waiting.processor_ref, approved=True)
    assert paid == ChargeResult("succeeded", waiting.processor_ref) == await sandbox.find(wanted, 0)
    assert await sandbox.authenticate_charge(waiting.processor_ref, approved=False) == paid
    present = await sandbox.charge(await order(sandbox, "4000002500003155", customer_present=True))
    assert present.status == "requires_action"
    refused = await sandbox.authenticate_charge(present.processor_ref, approved=False)
    assert (refused.status, refused.decline_code) == ("declined", "authentication_failed")
    poor = await sandbox.charge(await order(sandbox, "4000008260003178", customer_present=True))
    assert (await sandbox.authenticate_charge(poor.processor_ref, approved=True)).decline_code == "insufficient_funds"


async def test_of_the_attempts_of_a_charge_one_is_paid(sandbox: Sandbox):
    first = await order(sandbox, ALWAYS)
    waiting = await sandbox.charge(first)
    method = await added(sandbox, GOOD)
    second = msgspec.structs.replace(first, attempt=2, method_ref=method, processor_ref=waiting.processor_ref)
    paid = await sandbox.charge(second)
    assert paid.status == "succeeded"
    called_off = await sandbox.authenticate_charge(waiting.processor_ref, approved=True)
    assert (called_off.status, called_off.decline_code) == ("declined", "canceled")
    third = msgspec.structs.replace(second, attempt=3)
    assert await sandbox.charge(third) == paid == await sandbox.find(third, 0)
    assert await sandbox.find(first, 0) == paid


# Refunds


async def test_refunds_are_made_once_and_never_exceed_the_charge(sandbox: Sandbox):
    charged = await sandbox.charge(await order(sandbox))
    refund = await sandbox.refund("ref_1", charged.processor_ref, 200)
    assert refund.status == "succeeded"
    assert await sandbox.refund("ref_1", charged.processor_ref, 200) == refund
    with pytest.raises(OrderChanged):
        await sandbox.refund("ref_1", charged.processor_ref, 201)
    for cents in (301, 0, -1):
        with pytest.raises(ProcessorRefused, match="the 300 that are left"):
            await sandbox.refund("ref_2", charged.processor_ref, cents)
    at_once = await asyncio.gather(
        *(sandbox.refund(f"ref_x{n}", charged.processor_ref, 200) for n in range(5)), return_exceptions=True
    )
    assert sum(not isinstance(each, Exception) for each in at_once) == 1
    declined = await sandbox.charge(await order(sandbox, LATER))
    with pytest.raises(ProcessorRefused, match="no paid charge"):
        await sandbox.refund("ref_3", declined.processor_ref, 100)


# What is not there


async def test_a_database_that_is_away_leaves_the_outcome_unknown(sandbox: Sandbox):
    wanted = await order(sandbox)
    away = Sandbox(await Store.connect("postgresql://127.0.0.1:1/none"))
    with pytest.raises(OutcomeUnknown):
        await away.charge(wanted)


async def test_it_sends_no_events(sandbox: Sandbox):
    with pytest.raises(BadSignature):
        sandbox.event(b"{}", {})


# Who serves whom


async def test_without_keys_test_merchants_have_the_sandbox_and_live_ones_nothing(store: Store):
    async with opened(Settings(), store) as cards:
        assert cards.of("test") is cards.sandbox is cards.named("test", "sandbox")
        with pytest.raises(ObolError, match="OBOL_STRIPE_LIVE_KEY") as caught:
            cards.of("live")
        assert caught.value.code == "cards_not_configured"
        for name in ("sandbox", "stripe"):
            with pytest.raises(ObolError, match="live mode"):
                cards.named("live", name)


async def test_each_key_serves_its_own_mode_and_the_sandbox_keeps_its_cards(store: Store):
    both = Settings(stripe_test_key="sk_test_1", stripe_live_key="rk_live_1")
    async with opened(both, store) as cards:
        assert [(cards.of(mode).name, cards.of(mode).mode) for mode in ("test", "live")] == [
            ("stripe", "test"),
            ("stripe", "live"),
        ]
        assert cards.named("test", "sandbox") is cards.sandbox
        with pytest.raises(ObolError):
            cards.named("live", "sandbox")
        with pytest.raises(ValueError, match="other mode"):
            Cards(cards.sandbox, live=cards.of("test"))
    async with opened(Settings(stripe_test_key="sk_test_1"), store) as cards:
        assert cards.of("test").name == "stripe"
        with pytest.raises(ObolError):
            cards.of("live")
