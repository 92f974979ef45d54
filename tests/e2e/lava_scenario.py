"""What the published versions of @lavapayments/nodejs are asked to do: calls, calls by id, and mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from obol_sdk import Obol

ORIGIN = "https://app.example.com"
START = "2026-01-01T00:00:00+02:00"
METER = {
    "rate_type": "fixed",
    "tier_type": "tokens_1m",
    "tiers": [{"start": "0", "rate": "2"}, {"start": "5", "rate": "1"}],
}
SPEND_KEY = {
    "name": "Ada's editor",
    "request_shape": "openai",
    "allowed_models": ["gpt-4o-mini"],
    "allowed_providers": ["openai"],
    "spend_limit": {"amount": "5.00", "cycle": "monthly"},
    "request_limit": {"count": 100, "cycle": "daily"},
    "rate_limit": {"rpm": 60, "burst": 10},
    "expires_at": "2030-01-01T00:00:00Z",
}
NO_LIMITS = dict.fromkeys(("allowed_models", "allowed_providers", "spend_limit", "request_limit", "rate_limit"))
PLAN = {"name": "Pro", "period_amount": "5", "billing_interval": "month"}


class Shop:
    """What a version works with: ids by name, and the answers of its calls so far, the latest of each method."""

    def __init__(self, obol: Obol, version: str, hooks_url: str) -> None:
        self.hooks_url = hooks_url
        reference = f"user-of-{version}"
        self.customer = obol.customers.create(reference_id=reference, email="ada@example.com", name="Ada Lovelace")
        self.meter = obol.meters.create(
            name="Calls", rate_type="fixed", tier_type="requests", tiers=[{"start": 0, "rate": "0.001"}]
        )
        bundle: Any = {"name": "Ten", "cost": "9.00", "credit_amount": "10.00"}
        self.plan = obol.plans.create(
            name=f"Free of {version}", period_amount="0", meter_ids=[self.meter.meter_id], credit_bundles=[bundle]
        )
        (self.bundle,) = self.plan.credit_bundles
        made = obol.subscriptions.create(customer_id=self.customer.customer_id, plan_id=self.plan.plan_id)
        self.subscription_id = made.subscription.subscription_id
        self.request_id = f"request-of-{version}"
        obol.requests.create(
            request_id=self.request_id, customer_id=reference, meter_slug=self.meter.meter_slug, metadata={"made": "by"}
        )
        self.checkout_session_id = obol.checkout_sessions.create(
            checkout_mode="subscription", origin_url=ORIGIN, plan_id=self.plan.plan_id, reference_id=reference
        ).checkout_session_id
        self.answers: dict[str, Any] = {}

    def with_keys(self, obol: Obol) -> Shop:
        """And with a webhook and keys. Of webhooks a merchant may have three."""
        for webhook in obol.webhooks.list():
            obol.webhooks.delete(webhook.webhook_id)
        self.webhook = obol.webhooks.create(name="Ours", url=self.hooks_url)
        self.secret_key = obol.secret_keys.create(name="Second")
        self.spend_key = obol.spend_keys.create(name="Editor")
        return self

    def id(self, method: str, field: str) -> str:
        """Of what a call made; of one that failed, a name that nobody has."""
        return str((self.answers[method] or {}).get(field, "nobody"))


Arguments = Callable[[Shop], list[Any]]
SCENARIO: list[tuple[str, Arguments]] = [
    ("meters.create", lambda shop: [{**METER, "name": "Chat"}]),
    ("meters.list", lambda shop: [{"limit": 2}]),
    ("meters.retrieve", lambda shop: [shop.meter.meter_id]),
    (
        "meters.update",
        lambda shop: [shop.id("meters.create", "meter_id"), {"tiers": [{"start": "0", "rate": "3"}], "name": "Chats"}],
    ),
    ("meters.delete", lambda shop: [shop.id("meters.create", "meter_id")]),
    ("customers.create", lambda shop: [{"email": "eve@example.com", "metadata": {"team": {"size": 3}}}]),
    (
        "customers.update",
        lambda shop: [shop.id("customers.create", "customer_id"), {"name": "Eve Adams", "email": None}],
    ),
    ("customers.list", lambda shop: [{"limit": 2}]),
    ("customers.retrieve", lambda shop: [shop.customer.customer_id]),
    ("customers.getSubscription", lambda shop: [shop.customer.customer_id]),
    ("connections.list", lambda shop: [{"limit": 2, "reference_id": shop.customer.reference_id}]),
    ("connections.retrieve", lambda shop: [shop.customer.customer_id]),
    ("connections.getSubscription", lambda shop: [shop.customer.customer_id]),
    (
        "subscriptions.createPlan",
        lambda shop: [
            {
                "name": "Pro",
                "period_amount": "25.00",
                "billing_interval": "month",
                "rollover_type": "full",
                "included_credit": "20.00",
                "meter_ids": [shop.meter.meter_id],
                "credit_bundles": [{"name": "Ten", "cost": "9.00", "credit_amount": "10.00"}],
                "default_auto_top_up_bundle_index": 0,
            }
        ],
    ),
    ("subscriptions.listPlans", lambda shop: [{"limit": 2}]),
    ("subscriptions.retrievePlan", lambda shop: [shop.id("subscriptions.createPlan", "plan_id")]),
    (
        "subscriptions.updatePlan",
        lambda shop: [
            shop.id("subscriptions.createPlan", "plan_id"),
            {"name": "Pro 2", "credit_bundles": [{"name": "Five", "cost": "5.00", "credit_amount": "5.00"}]},
        ],
    ),
    ("subscriptions.deletePlan", lambda shop: [shop.id("subscriptions.createPlan", "plan_id")]),
    ("subscriptions.listConfigs", lambda shop: [{"limit": 2}]),
    ("subscriptions.retrieveConfig", lambda shop: [shop.plan.plan_id]),
    ("creditBundles.list", lambda shop: [{"plan_id": shop.plan.plan_id, "subscription_config_id": shop.plan.plan_id}]),
    ("creditBundles.retrieve", lambda shop: [shop.bundle.credit_bundle_id]),
    (
        "subscriptions.create",
        lambda shop: [{"customer_id": shop.id("customers.create", "customer_id"), "plan_id": shop.plan.plan_id}],
    ),
    ("subscriptions.list", lambda shop: [{"status": "active", "limit": 2}]),
    (
        "subscriptions.update",
        lambda shop: [shop.subscription_id, {"auto_top_up_bundle_id": shop.bundle.credit_bundle_id}],
    ),
    (
        "requests.create",
        lambda shop: [
            {
                "request_id": f"{shop.request_id}-again",
                "connection_id": shop.customer.customer_id,
                "customer_id": shop.customer.customer_id,
                "meter_slug": shop.meter.meter_slug,
                "output_seconds": 1.5,
                "metadata": {"feature": "speech"},
            }
        ],
    ),
    ("requests.list", lambda shop: [{"limit": 2, "metadata_filters": {"made": "by"}}]),
    ("requests.retrieve", lambda shop: [shop.request_id]),
    ("usage.retrieve", lambda shop: [{"start": START, "metadata_filters": {"made": "by"}}]),
    (
        "checkoutSessions.create",
        lambda shop: [
            {
                "checkout_mode": "subscription",
                "origin_url": ORIGIN,
                "plan_id": shop.plan.plan_id,
                "subscription_config_id": shop.plan.plan_id,
            }
        ],
    ),
    ("checkout.create", lambda shop: [{"checkout_mode": "onboarding", "origin_url": ORIGIN, "reference_id": "user-7"}]),
    ("checkout.retrieve", lambda shop: [shop.id("checkout.create", "checkout_session_id")]),
    ("webhooks.create", lambda shop: [{"name": "Ours", "url": shop.hooks_url}]),
    ("webhooks.list", lambda shop: [{"limit": 2}]),
    ("webhooks.retrieve", lambda shop: [shop.id("webhooks.create", "webhook_id")]),
    ("webhooks.update", lambda shop: [shop.id("webhooks.create", "webhook_id"), {"name": "Theirs"}]),
    ("webhooks.delete", lambda shop: [shop.id("webhooks.create", "webhook_id")]),
    ("secretKeys.create", lambda shop: [{"name": "Second"}]),
    ("secretKeys.list", lambda shop: [{"limit": 2}]),
    ("secretKeys.delete", lambda shop: [shop.id("secretKeys.create", "secret_key_id")]),
    ("spendKeys.create", lambda shop: [SPEND_KEY]),
    ("spendKeys.list", lambda shop: [{"limit": 2}]),
    ("spendKeys.retrieve", lambda shop: [shop.id("spendKeys.create", "spend_key_id")]),
    ("spendKeys.update", lambda shop: [shop.id("spendKeys.create", "spend_key_id"), {"status": "paused", **NO_LIMITS}]),
    ("spendKeys.rotate", lambda shop: [shop.id("spendKeys.create", "spend_key_id")]),
    ("spendKeys.revoke", lambda shop: [shop.id("spendKeys.create", "spend_key_id")]),
    ("models.list", lambda shop: []),
    ("subscriptions.cancel", lambda shop: [shop.subscription_id]),
    ("connections.delete", lambda shop: [shop.customer.customer_id]),
    ("customers.delete", lambda shop: [shop.customer.customer_id]),
]

BY_ID: dict[str, Arguments] = {
    "meters.retrieve": lambda shop: [shop.meter.meter_id],
    "meters.update": lambda shop: [shop.meter.meter_id, {"name": "Mine now"}],
    "meters.delete": lambda shop: [shop.meter.meter_id],
    "customers.retrieve": lambda shop: [shop.customer.customer_id],
    "customers.update": lambda shop: [shop.customer.customer_id, {"name": "Mine now"}],
    "customers.getSubscription": lambda shop: [shop.customer.customer_id],
    "customers.delete": lambda shop: [shop.customer.customer_id],
    "connections.retrieve": lambda shop: [shop.customer.connection_secret],
    "connections.getSubscription": lambda shop: [shop.customer.reference_id],
    "connections.delete": lambda shop: [shop.customer.customer_id],
    "subscriptions.retrievePlan": lambda shop: [shop.plan.plan_id],
    "subscriptions.updatePlan": lambda shop: [shop.plan.plan_id, {"name": "Mine now"}],
    "subscriptions.deletePlan": lambda shop: [shop.plan.plan_id],
    "subscriptions.retrieveConfig": lambda shop: [shop.plan.plan_id],
    "subscriptions.update": lambda shop: [shop.subscription_id, {"auto_top_up_bundle_id": None}],
    "subscriptions.cancel": lambda shop: [shop.subscription_id],
    "creditBundles.retrieve": lambda shop: [shop.bundle.credit_bundle_id],
    "requests.retrieve": lambda shop: [shop.request_id],
    "checkout.retrieve": lambda shop: [shop.checkout_session_id],
    "webhooks.retrieve": lambda shop: [shop.webhook.webhook_id],
    "webhooks.update": lambda shop: [shop.webhook.webhook_id, {"name": "Mine now"}],
    "webhooks.delete": lambda shop: [shop.webhook.webhook_id],
    "secretKeys.delete": lambda shop: [shop.secret_key.secret_key_id],
    "spendKeys.retrieve": lambda shop: [shop.spend_key.spend_key_id],
    "spendKeys.update": lambda shop: [shop.spend_key.spend_key_id, {"status": "paused"}],
    "spendKeys.rotate": lambda shop: [shop.spend_key.spend_key_id],
    "spendKeys.revoke": lambda shop: [shop.spend_key.spend_key_id],
}
"""Every method that is told an id."""

MISTAKES: list[tuple[str, list[Any], int, str]] = [
    ("meters.create", [{**METER, "name": "Chat", "tiers": []}], 400, "tiers"),
    ("meters.create", [{**METER, "name": "Chat", "rate_type": "hybrid"}], 400, "rate_type"),
    ("meters.create", [METER], 400, "name"),
    ("meters.create", [{**METER, "name": "Chat", "tiers": [{"start": "0", "rate": "dear"}]}], 400, "tiers[0].rate"),
    ("customers.create", [{"reference_id": "con_of_mine"}], 400, "reference_id"),
    ("customers.create", [{"metadata": {"much": "x" * 17_000}}], 400, "metadata"),
    ("customers.list", [{"limit": 101}], 400, "limit"),
    ("customers.list", [{"cursor": "!"}], 400, "cursor"),
    ("subscriptions.createPlan", [{"name": "Pro", "billing_interval": "month"}], 400, "period_amount"),
    ("subscriptions.createPlan", [{**PLAN, "period_amount": "10000.01"}], 400, "period_amount"),
    ("subscriptions.createPlan", [{**PLAN, "included_credit": "6"}], 400, "included_credit"),
    ("subscriptions.createPlan", [{**PLAN, "billing_interval": "fortnight"}], 400, "billing_interval"),
    ("subscriptions.list", [{"status": "resting"}], 400, "status"),
    ("subscriptions.create", [{"customer_id": "nobody", "plan_id": "nothing"}], 404, "customer_id"),
    ("requests.create", [{"customer_id": "nobody", "meter_slug": "demo-tokens"}], 400, "request_id"),
    ("requests.create", [{"request_id": "r", "meter_slug": "demo-tokens"}], 400, "connection_id"),
    ("requests.list", [{"connection_id": "nobody", "customer_id": "nobody"}], 404, "connection_id|customer_id"),
    ("usage.retrieve", [{"start": "yesterday"}], 400, "start"),
    ("checkoutSessions.create", [{"checkout_mode": "gift", "origin_url": ORIGIN}], 400, "checkout_mode"),
    ("checkout.create", [{"checkout_mode": "topup", "origin_url": ORIGIN}], 400, "connection_id"),
    ("webhooks.create", [{"name": "Ours", "url": "not a URL"}], 400, "url"),
    ("secretKeys.create", [{}], 400, "name"),
    ("spendKeys.create", [{"name": "x" * 256}], 400, "name"),
    ("spendKeys.create", [{"name": "k", "allowed_models": []}], 400, "allowed_models"),
    ("spendKeys.create", [{"name": "k", "spend_limit": {"amount": "5", "cycle": "hourly"}}], 400, "spend_limit.cycle"),
]
"""A call, and the status and the field of its refusal."""
