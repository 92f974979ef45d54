"""What the API answers, as structs. Amounts are US dollars as `Decimal`, times are aware `datetime`s.

A later server may send more fields than these; what a struct does not know is ignored.
"""

from __future__ import annotations

from datetime import date as Date  # a field of Day has the name
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec

Interval = Literal["day", "week", "month", "year"]
Rollover = Literal["full", "none"]
RateType = Literal["fixed", "percentage"]
Unit = Literal["tokens_1m", "characters_1m", "minutes", "requests"]
Cycle = Literal["daily", "weekly", "monthly", "total"]
EventStyle = Literal["connection", "customer"]
SignatureStyle = Literal["default", "timestamped"]
CheckoutMode = Literal["subscription", "credit_bundle", "onboarding", "topup"]


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """Of a deletion, cancellation or revocation."""

    success: bool = True
    id: str | None = None


class Contact(msgspec.Struct, frozen=True, kw_only=True):
    """Empty where it is not known."""

    phone: str = ""
    email: str = ""
    first_name: str = ""
    last_name: str = ""


class SubscriptionSummary(msgspec.Struct, frozen=True, kw_only=True):
    subscription_id: str
    plan_id: str
    name: str
    status: Literal["active", "cancelled"]


class Wallet(Contact, frozen=True, kw_only=True):
    """`balance`: everything that is left of all credit."""

    balance: Decimal
    autopay_enabled: bool = False


class Balances(msgspec.Struct, frozen=True, kw_only=True):
    """What is left by kind of credit. `held`: reserved by calls under way. `available` None: without limit."""

    cycle: Decimal
    bundle: Decimal
    prepaid: Decimal
    overage: Decimal
    held: Decimal
    available: Decimal | None = None


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """Also called a connection."""

    customer_id: str
    connection_secret: str
    reference_id: str | None = None
    wallet_id: str | None = None
    wallet: Wallet
    balances: Balances
    contact: Contact
    subscription: SubscriptionSummary | None = None
    metadata: dict[str, Any] | None = None
    previous_usage_reset: datetime
    next_usage_reset: datetime
    created_at: datetime


class CheckoutSession(msgspec.Struct, frozen=True, kw_only=True):
    """`checkout_session_token` is what the checkout library opens."""

    checkout_session_id: str
    checkout_session_token: str
    checkout_mode: CheckoutMode
    origin_url: str
    customer_id: str | None = None
    reference_id: str | None = None
    plan_id: str | None = None
    credit_bundle_id: str | None = None
    created_at: datetime
    expires_at: datetime | None = None
    completed_at: datetime | None = None


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """From `start` units on, a unit costs `rate` (or `rate` percent of the provider's cost)."""

    start: Decimal
    rate: Decimal
    type: Unit


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """Also called a product. `product_secret` names the meter in forward tokens, as `meter_slug` does."""

    meter_id: str
    meter_slug: str
    name: str
    rate_type: RateType
    tiers: list[Tier]
    product_secret: str | None = None
    token_basis: Literal["input+output", "output"] = "input+output"  # noqa: S105
    created_at: datetime


class UsedModel(msgspec.Struct, frozen=True, kw_only=True):
    """Usage and the provider's cost of one request."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_characters: int = 0
    output_characters: int = 0
    total_characters: int = 0
    input_seconds: float = 0
    output_seconds: float = 0
    total_seconds: float = 0
    input_cost: Decimal = Decimal(0)
    output_cost: Decimal = Decimal(0)
    total_cost: Decimal = Decimal(0)


class ChargeLine(msgspec.Struct, frozen=True, kw_only=True):
    """What of a charge came from one tier."""

    tier: Tier
    tokens: int = 0
    characters: int = 0
    seconds: float = 0
    cost: Decimal


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What the customer paid, by the meter's tiers."""

    amount: Decimal
    rate_type: RateType
    breakdown: list[ChargeLine]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A call through the gateway, or reported usage. `cost` is the provider's price, `charge` the customer's."""

    request_id: str
    status: Literal["pending", "completed", "error"]
    customer_id: str | None = None
    meter_id: str | None = None
    provider: str
    provider_key_type: Literal["managed", "unmanaged", "stored"]
    model: str | None = None
    endpoint: str
    response_id: str | None = None
    model_usage: UsedModel
    cost: Decimal
    charge: Charge
    metadata: dict[str, str]
    created_at: datetime


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    total_requests: int
    total_usage_tokens: int
    total_cost: Decimal
    total_charge: Decimal


class Day(Counters, frozen=True, kw_only=True):
    date: Date
    start: datetime
    end: datetime


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Sums by day, in the time zone of the question's `start`, and over all of them."""

    items: list[Day]
    totals: Counters


class PlanBundle(msgspec.Struct, frozen=True, kw_only=True):
    credit_bundle_id: str
    name: str
    cost: Decimal
    credit_amount: Decimal


class LinkedMeter(msgspec.Struct, frozen=True, kw_only=True):
    meter_id: str
    name: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Also called a subscription config."""

    plan_id: str
    merchant_id: str
    name: str
    period_amount: Decimal
    included_credit: Decimal
    billing_interval: Interval
    rollover_type: Rollover
    bundle_rollover_type: Rollover
    default_auto_top_up_bundle_id: str | None = None
    linked_meters: list[LinkedMeter]
    credit_bundles: list[PlanBundle]
    overage: Literal["charge", "block"] = "charge"
    overage_cap: Decimal | None = None
    unlinked_meters: Literal["refuse", "allow"] = "refuse"
    is_free: bool = False
    status: Literal["active", "archived"] = "active"
    created_at: datetime


class CreditBundle(PlanBundle, frozen=True, kw_only=True):
    """And whose it is."""

    plan_id: str
    created_at: datetime


class SubscribedPlan(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    period_amount: Decimal
    included_credit: Decimal
    billing_interval: Interval
    rollover_type: Rollover
    bundle_rollover_type: Rollover


class Credits(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a subscription's credit."""

    total_remaining: Decimal
    cycle_remaining: Decimal
    bundle_remaining: Decimal


class PendingChange(msgspec.Struct, frozen=True, kw_only=True):
    """What the cycle's end will bring. A downgrade names the plan that follows."""

    type: Literal["cancellation", "downgrade"]
    effective_at: datetime | None = None
    plan_id: str | None = None
    name: str | None = None
    period_amount: Decimal | None = None
    included_credit: Decimal | None = None


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    subscription_id: str
    plan_id: str
    status: Literal["active", "cancelled"]
    auto_top_up_bundle_id: str | None = None
    started_at: datetime
    cancelled_at: datetime | None = None
    cycle_start_at: datetime | None = None
    cycle_end_at: datetime | None = None
    plan: SubscribedPlan
    credits: Credits
    pending_change: PendingChange | None = None


class ListedSubscription(Subscription, frozen=True, kw_only=True):
    """And whose it is."""

    customer_id: str


class SubscriptionOf(msgspec.Struct, frozen=True, kw_only=True):
    """A customer's subscription; None without one."""

    subscription: Subscription | None = None


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription as it is now."""

    subscription: Subscription


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """`events` None: all. `paused_reason`: you did, it answered 410, or nothing reached it for days."""

    webhook_id: str
    name: str
    url: str
    status: Literal["active", "paused"] = "active"
    paused_reason: Literal["merchant", "gone", "failing"] | None = None
    events: list[str] | None = None
    event_style: EventStyle = "connection"
    signature_style: SignatureStyle = "default"
    created_at: datetime


class NewWebhook(Webhook, frozen=True, kw_only=True):
    """`webhook_secret` is shown this once."""

    webhook_secret: str


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one endpoint. `last_status_code` None: there was no answer."""

    event_id: str
    webhook_id: str
    event: str
    customer_id: str
    status: Literal["waiting", "delivered", "dead"]
    attempts: int
    last_status_code: int | None = None
    last_error: str | None = None
    created_at: datetime
    next_attempt_at: datetime | None = None
    finished_at: datetime | None = None


class SecretKey(msgspec.Struct, frozen=True, kw_only=True):
    """`secret_key_hint`: its last four characters."""

    secret_key_id: str
    name: str
    secret_key_hint: str
    created_at: datetime


class NewSecretKey(SecretKey, frozen=True, kw_only=True):
    """`secret_key` is shown this once."""

    secret_key: str


class SpendLimit(msgspec.Struct, frozen=True, kw_only=True):
    amount: Decimal
    cycle: Cycle


class RequestLimit(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    cycle: Cycle


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Requests a minute, and how many at once."""

    rpm: int
    burst: int | None = None


class SpendKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key for the gateway alone, with limits of its own. None in a limit: none."""

    spend_key_id: str
    key_preview: str
    name: str
    status: Literal["active", "paused"]
    request_shape: Literal["openai", "anthropic"]
    wallet_id: str
    allowed_models: list[str] | None = None
    allowed_providers: list[str] | None = None
    spend_limit: SpendLimit | None = None
    current_spend: Decimal
    total_spend: Decimal
    request_limit: RequestLimit | None = None
    current_requests: int
    total_requests: int
    rate_limit: RateLimit | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    created_at: datetime


class NewSpendKey(SpendKey, frozen=True, kw_only=True):
    """`key` is shown this once."""

    key: str


class ProviderKey(msgspec.Struct, frozen=True, kw_only=True):
    """`key_hint`: its last four characters."""

    provider: str
    key_hint: str
    created_at: datetime
    updated_at: datetime


class ProviderKeys(msgspec.Struct, frozen=True, kw_only=True):
    data: list[ProviderKey]


class ClockReading(msgspec.Struct, frozen=True, kw_only=True):
    """`turns_due`: cycles that have ended by `now` and are not turned yet."""

    now: datetime
    status: Literal["advancing", "ready"]
    turns_due: int = 0


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that has a price and can be called."""

    id: str
    created: int
    owned_by: str


class Models(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Model]
