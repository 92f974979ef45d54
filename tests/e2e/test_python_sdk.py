"""obol-sdk against a running `obol up --demo`: its README as it stands, and every method of both clients."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from demonstration import Demonstration, Hooks
from obol_sdk import AsyncObol, AsyncPage, NotFoundError, Obol, Page, webhooks
from obol_sdk.call import Resource

from gateway.wire import webhook_signature

README = Path(__file__).parents[2] / "sdk" / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
ORIGIN = "https://app.example.com"
START = "2026-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def obol(demo: Demonstration) -> Iterator[Obol]:
    with Obol(demo.demo["secret_key"], base_url=demo.url) as client:
        yield client


def test_the_readme_as_it_stands(demo: Demonstration, obol: Obol, monkeypatch: pytest.MonkeyPatch) -> None:
    """The six steps, and what follows them, one after the other; then the books say what they must.

    Only the address for webhooks is another one: what is in the README is not on this machine.
    """
    monkeypatch.setenv("OBOL_BASE_URL", demo.url)
    monkeypatch.setenv("OBOL_SECRET_KEY", demo.demo["secret_key"])
    assert len(SNIPPETS) > 14
    names: dict[str, Any] = {"__name__": "readme"}
    printed = io.StringIO()
    with redirect_stdout(printed):
        for number, code in enumerate(SNIPPETS):
            here = code.replace("https://yourapp.com/hooks", demo.hooks.url)
            exec(compile(here, f"{README.name}, snippet {number}", "exec"), names)
    said = printed.getvalue()
    assert "0.0120000000" in said
    assert "insufficient_balance\nperiod_amount\n" in said
    assert "data: [DONE]" in said
    check_bill(obol, names)
    check_webhook(names)


def check_bill(obol: Obol, names: dict[str, Any]) -> None:
    """Two calls and a report are on the meter, each at $0.02 per 1,000 tokens, and nothing else is."""
    payer, meter = names["payer"].customer_id, names["meter"].meter_id
    deadline_s = time.monotonic() + 10
    while (
        len(rows := list(obol.requests.list(customer_id=payer, meter_id=meter))) < 3 and time.monotonic() < deadline_s
    ):
        time.sleep(0.05)
    assert len(rows) == 3
    assert all(row.charge.amount == row.model_usage.total_tokens * Decimal("0.00002") > 0 for row in rows)
    (own,) = [row for row in obol.requests.list(meter_id=meter) if row.customer_id is None]
    assert own.charge.amount == 0
    (said,) = [row for row in rows if row.metadata == {"feature": "chat"}]
    assert said.request_id == names["answer"].headers["x-lava-request-id"]


def check_webhook(names: dict[str, Any]) -> None:
    body = json.dumps(
        {"id": "evt_1", "event": "e", "type": "e", "created_at": START, "data": {"connection_id": "con_1"}}
    ).encode()
    pairs = webhook_signature.headers("evt_1", body, (names["secret"],), timestamp_s=int(time.time()), style="default")
    headers = {name.decode(): value.decode() for name, value in pairs}
    assert [names["received"](body, headers), names["received"](body + b" ", headers)] == [200, 400]


class Calls:
    """Makes every call of a client, in an order in which each finds what it needs, and remembers which ones."""

    def __init__(self, client: Obol | AsyncObol, hooks: Hooks) -> None:
        self.client, self.hooks = client, hooks
        self.made: set[str] = set()
        self.mark = secrets.token_hex(4)

    async def __call__(self, name: str, /, *args: Any, **given: Any) -> Any:
        resource, method = name.split(".")
        answer = getattr(getattr(self.client, resource), method)(*args, **given)
        if inspect.isawaitable(answer):
            answer = await answer
        self.made.add(name)
        if isinstance(answer, Page | AsyncPage):
            assert answer.data, f"{name} shows nothing"
        else:
            assert isinstance(answer, msgspec.Struct)
        return answer

    async def all(self) -> None:
        meter_slug, customer_id, plan = await self._plans()
        await self._subscriptions(customer_id, plan)
        await self._reports(customer_id, meter_slug)
        await self._keys(customer_id, meter_slug)
        await self._webhooks()
        session = await self(
            "checkout_sessions.create", checkout_mode="subscription", origin_url=ORIGIN, plan_id=plan.plan_id
        )
        assert await self("checkout_sessions.retrieve", session.checkout_session_id) == session
        await self("checkout_sessions.list")
        await self("customers.delete", customer_id)

    async def _plans(self) -> tuple[str, str, Any]:
        spare = await self("meters.create", **METER, name="Spare")
        assert (await self("meters.update", spare.meter_id, name="Much")).name == "Much"
        await self("meters.delete", spare.meter_id)
        meter = await self("meters.create", **METER, name="Chat", meter_slug=f"chat-{self.mark}")
        assert await self("meters.retrieve", meter.meter_slug) == meter
        await self("meters.list", limit=1)
        bundle: Any = {"name": "Ten", "cost": Decimal(9), "credit_amount": "10"}
        plan = await self(
            "plans.create", name="Free", period_amount=0, meter_ids=[meter.meter_id], credit_bundles=[bundle]
        )
        assert await self("plans.retrieve", plan.plan_id) == plan
        assert (await self("plans.update", plan.plan_id, name="Still free", overage_cap="5")).overage_cap == 5
        await self("plans.list")
        (made,) = (await self("credit_bundles.list", plan_id=plan.plan_id)).data
        assert await self("credit_bundles.retrieve", made.credit_bundle_id) == made
        assert (made.cost, made.credit_amount) == (9, 10)
        unused = await self("plans.create", name="Of nobody", period_amount="5.00", included_credit=Decimal("4.50"))
        assert (await self("plans.archive", unused.plan_id)).status == "archived"
        await self("plans.delete", unused.plan_id)
        customer = await self("customers.create", reference_id=f"user-{self.mark}", email="a@example.com")
        assert await self("customers.retrieve", f"user-{self.mark}") == customer
        changed = await self("customers.update", customer.customer_id, email=None, name="Ada Lovelace")
        assert (changed.contact.email, changed.contact.last_name) == ("", "Lovelace")
        await self("customers.list")
        return meter.meter_slug, customer.customer_id, plan

    async def _subscriptions(self, customer_id: str, plan: Any) -> None:
        made = (await self("subscriptions.create", customer_id=customer_id, plan_id=plan.plan_id)).subscription
        assert (await self("customers.subscription", customer_id)).subscription.subscription_id == made.subscription_id
        bundle_id = plan.credit_bundles[0].credit_bundle_id
        changed = await self("subscriptions.update", made.subscription_id, auto_top_up_bundle_id=bundle_id)
        assert changed.subscription.auto_top_up_bundle_id == bundle_id
        await self("subscriptions.cancel", made.subscription_id)
        ending = await self("subscriptions.retrieve", made.subscription_id)
        assert (ending.pending_change.type, ending.customer_id) == ("cancellation", customer_id)
        await self("subscriptions.list", customer_id=customer_id, status="all")

    async def _reports(self, customer_id: str, meter_slug: str) -> None:
        name, metadata = f"report-{self.mark}", {"mark": self.mark}
        report = {"customer_id": customer_id, "meter_slug": meter_slug, "output_tokens": 1_000, "metadata": metadata}
        made = await self("requests.create", request_id=name, **report)
        assert made.charge.amount == Decimal("0.002")
        assert await self("requests.retrieve", name) == made
        assert (await self("requests.list", metadata=metadata)).data == [made]
        usage = await self("usage.retrieve", start=START, metadata=metadata)
        assert (usage.totals.total_requests, usage.totals.total_charge) == (1, made.charge.amount)
        assert len(usage.items) > 300
        assert "gpt-4o-mini" in {model.id for model in (await self("models.list")).data}

    async def _keys(self, customer_id: str, meter_slug: str) -> None:
        secret = await self("secret_keys.create", name="Second")
        assert (await self("secret_keys.rotate", secret.secret_key_id)).secret_key != secret.secret_key
        await self("secret_keys.list")
        await self("secret_keys.delete", secret.secret_key_id)
        spend = await self(
            "spend_keys.create",
            name="Editor",
            customer_id=customer_id,
            meter_slug=meter_slug,
            spend_limit={"amount": Decimal("5.5"), "cycle": "monthly"},
            request_limit={"count": 5, "cycle": "total"},
            rate_limit={"rpm": 60},
            expires_at="2030-01-01T00:00:00Z",
        )
        assert (spend.spend_limit.amount, spend.rate_limit.rpm) == (Decimal("5.5"), 60)
        changed = await self("spend_keys.update", spend.spend_key_id, status="paused", spend_limit=None)
        assert (changed.status, changed.spend_limit, changed.request_limit) == ("paused", None, spend.request_limit)
        assert await self("spend_keys.retrieve", spend.spend_key_id) == changed
        assert (await self("spend_keys.rotate", spend.spend_key_id)).key != spend.key
        await self("spend_keys.list")
        await self("spend_keys.revoke", spend.spend_key_id)
        stored = await self("provider_keys.store", "mistral", key="key-of-mine-1234")
        assert stored.key_hint == "1234"
        assert await self("provider_keys.retrieve", "mistral") == stored
        assert (await self("provider_keys.list")).data == [stored]
        await self("provider_keys.delete", "mistral")

    async def _webhooks(self) -> None:
        made = await self("webhooks.create", name="Ours", url=self.hooks.url, events=["customer.deleted"])
        assert (await self("webhooks.update", made.webhook_id, event_style="customer", events=None)).events is None
        assert (await self("webhooks.retrieve", made.webhook_id)).event_style == "customer"
        secret = (await self("webhooks.rotate", made.webhook_id)).webhook_secret
        assert secret != made.webhook_secret
        await self("webhooks.list")
        customer = await self("customers.create", reference_id=f"told-{self.mark}")
        for each in (secret, made.webhook_secret):  # the former one holds beside it for a day
            event = await self._told(customer.customer_id, each)
            assert (event.event, event.data["reference_id"]) == ("customer.created", f"told-{self.mark}")
        delivery = (await self("webhooks.deliveries", made.webhook_id)).data[0]
        assert (await self("webhooks.resend", made.webhook_id, delivery.event_id)).event_id == delivery.event_id
        await self("webhooks.delete", made.webhook_id)
        clock = await self("test_clock.advance", seconds=60)
        assert (await self("test_clock.retrieve")).now >= clock.now

    async def _told(self, customer_id: str, secret: str) -> webhooks.Event:
        """What the endpoint has heard of a customer, verified."""
        async with asyncio.timeout(15):
            while True:
                events = [webhooks.verify(body, headers, secret) for body, headers in self._since(customer_id)]
                if events:
                    return events[0]
                await asyncio.sleep(0.05)

    def _since(self, customer_id: str) -> list[tuple[bytes, dict[str, str]]]:
        return [message for message in self.hooks.received if customer_id.encode() in message[0]]


METER: Any = {"rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": 0, "rate": Decimal(2)}]}


def methods(client: Obol | AsyncObol) -> set[str]:
    """All there are."""
    resources = {name: value for name, value in vars(client).items() if isinstance(value, Resource)}
    return {
        f"{name}.{method}"
        for name, resource in resources.items()
        for method in vars(type(resource))
        if not method.startswith("_") and name != "connections"
    }


@pytest.fixture
def no_webhooks(obol: Obol) -> None:
    """Of webhooks a merchant may have three."""
    for webhook in obol.webhooks.list():
        obol.webhooks.delete(webhook.webhook_id)


async def test_every_method(demo: Demonstration, obol: Obol, no_webhooks: None) -> None:
    calls = Calls(obol, demo.hooks)
    await calls.all()
    assert calls.made == methods(obol)


async def test_every_method_awaited(demo: Demonstration, no_webhooks: None) -> None:
    async with AsyncObol(demo.demo["secret_key"], base_url=demo.url) as client:
        calls = Calls(client, demo.hooks)
        await calls.all()
        assert calls.made == methods(client)


def test_another_merchants_data_is_not_there(demo: Demonstration, obol: Obol) -> None:
    with Obol(demo.other_merchant.secret_key, base_url=demo.url) as other, pytest.raises(NotFoundError) as caught:
        other.customers.retrieve(demo.demo["connection_id"])
    assert (caught.value.code, caught.value.field) == ("connection_not_found", "id")
    assert caught.value.request_id
