"""Checkout sessions: made, read, listed. What is behind their tokens: pages/checkout.py."""

from __future__ import annotations

import re
from base64 import b64encode
from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import asyncpg
import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from gateway.api import operation, paging, reading
from gateway.api.connection_reader import ConnectionReader
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Nothing, Operation, Page, Text, Time
from gateway.api.paging import Listed
from gateway.api.plan_object import PLAN_FIELDS
from gateway.api.responses import iso, iso_or_none
from gateway.billing.plans import Plans, unknown_plan
from gateway.billing.principals import Merchant
from gateway.errors import ObolError
from gateway.store.secrets import digest, new_id

LIFETIME = timedelta(hours=24)
Mode = Literal["onboarding", "topup", "subscription", "credit_bundle"]
Url = Annotated[str, Meta(min_length=1, max_length=2_000, extra_json_schema={"format": "uri"})]
CUSTOMER_FIELDS = ("connection_id", "customer_id", "connection_secret")
_HOST = re.compile(r"[A-Za-z0-9.\-\[\]:]+")


class NewCheckoutSession(msgspec.Struct):
    """`connection_id` and `plan_id` also by their names of other eras."""

    checkout_mode: Mode
    origin_url: Url
    reference_id: Text | None = None
    connection_id: str | None = None
    customer_id: str | None = None
    connection_secret: str | None = None
    plan_id: str | None = None
    subscription_config_id: str | None = None
    credit_bundle_id: str | None = None


class NewFlexSession(msgspec.Struct):
    """Of the unreleased SDK 6.0.1."""

    plan_id: Text
    origin_url: Url


class CheckoutSession(msgspec.Struct):
    """What has no value is left out: the clients' types know no null here."""

    checkout_session_id: str
    checkout_session_token: str
    """Base64 of {"secret", "base"}: what the checkout library opens."""
    checkout_mode: Mode
    origin_url: str
    created_at: Time
    expires_at: Time
    connection_id: str | UnsetType = UNSET
    customer_id: str | UnsetType = UNSET
    reference_id: str | UnsetType = UNSET
    plan_id: str | UnsetType = UNSET
    subscription_config_id: str | UnsetType = UNSET
    credit_bundle_id: str | UnsetType = UNSET
    completed_at: Time | UnsetType = UNSET


class FlexSession(msgspec.Struct):
    """`url` is relative to the host."""

    id: str
    url: str
    expires_at: Time
    status: Literal["pending"] = "pending"


class SessionQuery(Page):
    """A page of those with this `reference_id`."""

    reference_id: Text | None = None


class CheckoutSessionRoutes:
    """The handlers."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._reader = ConnectionReader(context)
        self._plans = Plans(context.store)

    def operations(self) -> list[Operation]:
        path, tag = "/v1/checkout_sessions", "Checkout"
        missing = ("connection_not_found", "plan_not_found", "credit_bundle_not_found")
        listed = Listed[CheckoutSession]
        return [
            Operation(
                "POST",
                path,
                self.create,
                "Make a checkout session",
                tag,
                body=NewCheckoutSession,
                answer=CheckoutSession,
                errors=missing,
            ),
            Operation("GET", path, self.page, "List checkout sessions", tag, query=SessionQuery, answer=listed),
            Operation(
                "GET",
                path + "/{id}",
                self.read,
                "Retrieve a checkout session",
                tag,
                answer=CheckoutSession,
                errors=("not_found",),
            ),
            Operation(
                "POST",
                "/v1/flex/checkout_sessions",
                self.create_flex,
                "Make a checkout session of a plan, for SDK 6.0.1",
                tag,
                body=NewFlexSession,
                answer=FlexSession,
                errors=("plan_not_found",),
            ),
        ]

    async def create(self, call: Call[NewCheckoutSession, Nothing]) -> CheckoutSession:
        merchant, body = call.merchant, call.body
        customer = await self._customer(merchant, body)
        plan_id, bundle_id = await self._offer(merchant, body)
        reference = body.reference_id
        row = await self._insert(merchant, body.checkout_mode, body.origin_url, reference, customer, plan_id, bundle_id)
        return self._show(call.request, merchant, row)

    async def create_flex(self, call: Call[NewFlexSession, Nothing]) -> FlexSession:
        merchant, body = call.merchant, call.body
        plan_id = await self._plan(merchant, reading.Named("plan_id", body.plan_id))
        row = await self._insert(merchant, "subscription", body.origin_url, None, None, plan_id, None)
        token = self._show(call.request, merchant, row).checkout_session_token
        return FlexSession(row["checkout_session_id"], f"/checkout/{token}", iso(row["expires_at"]))

    async def read(self, call: Call[Nothing, Nothing]) -> CheckoutSession:
        row = await self._context.store.row("checkout_sessions.find", call.merchant.merchant_id, call.path_id())
        if row is None:
            raise ObolError("not_found", "this checkout session is not known", param="id")
        return self._show(call.request, call.merchant, row)

    async def page(self, call: Call[Nothing, SessionQuery]) -> Listed[CheckoutSession]:
        asked = paging.window(call.query)
        rows = await self._context.store.rows(
            "checkout_sessions.page", call.merchant.merchant_id, *asked.after, asked.fetch, call.query.reference_id
        )
        return paging.page(rows, asked, _place, lambda row: self._show(call.request, call.merchant, row))

    async def _customer(self, merchant: Merchant, body: NewCheckoutSession) -> str | None:
        named = operation.agreed(body, *CUSTOMER_FIELDS)
        if named is None:
            if body.checkout_mode in ("topup", "credit_bundle"):
                raise reading.invalid("connection_id", f"is required for checkout_mode {body.checkout_mode}")
            return None
        return str((await self._reader.find(merchant, named.value, named.field))["connection_id"])

    async def _offer(self, merchant: Merchant, body: NewCheckoutSession) -> tuple[str | None, str | None]:
        """The ids of the plan and the bundle that are sold."""
        if body.checkout_mode == "subscription":
            return await self._plan(merchant, operation.required(body, *PLAN_FIELDS)), None
        if body.checkout_mode != "credit_bundle":
            return None, None
        name = operation.required(body, "credit_bundle_id").value
        bundle = await self._plans.bundle(merchant.merchant_id, name, "credit_bundle_id")
        return bundle.plan_id, bundle.credit_bundle_id

    async def _plan(self, merchant: Merchant, named: reading.Named) -> str:
        plan = await self._plans.find(merchant.merchant_id, named.value, named.field)
        if plan.archived_at is not None:
            raise unknown_plan(named.field)
        return plan.plan_id

    async def _insert(self, merchant: Merchant, mode: Mode, origin_url: str, *more: str | None) -> asyncpg.Record:
        """`more`: reference, connection, plan, bundle."""
        _check_origin(origin_url)
        name = new_id("cs_")
        secret = self._context.derived.checkout_secret(merchant.mode, name)
        row = await self._context.store.row(
            "checkout_sessions.insert", name, merchant.merchant_id, digest(secret), mode, origin_url, *more, LIFETIME
        )
        assert row is not None
        return row

    def _show(self, request: web.Request, merchant: Merchant, row: asyncpg.Record) -> CheckoutSession:
        secret = self._context.derived.checkout_secret(merchant.mode, row["checkout_session_id"])
        optional: dict[str, Any] = {
            "connection_id": row["connection_id"],
            "customer_id": row["connection_id"],
            "reference_id": row["reference_id"],
            "plan_id": row["plan_id"],
            "subscription_config_id": row["plan_id"],
            "credit_bundle_id": row["credit_bundle_id"],
            "completed_at": iso_or_none(row["completed_at"]),
        }
        return CheckoutSession(
            row["checkout_session_id"],
            _token(secret, self._context.settings.public_url or _address(request)),
            row["checkout_mode"],
            row["origin_url"],
            iso(row["created_at"]),
            iso(row["expires_at"]),
            **{name: value for name, value in optional.items() if value is not None},
        )


def _check_origin(url: str) -> None:
    """An address of a page, whose origin will embed the checkout and hear how it ended."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        usable = False
    if not usable:
        raise reading.invalid("origin_url", "must be an http or https URL, such as https://yourapp.com")


def _address(request: web.Request) -> str:
    """Of this installation, as its caller names it."""
    if not _HOST.fullmatch(request.host):
        raise reading.invalid("the header host", "is not a host name, with a port or without")
    return f"{request.scheme}://{request.host}/"


def _token(secret: str, base: str) -> str:
    """Plain base64, as the browser's atob reads it. ASCII JSON without `?`, `>` and `~` gives neither `/` nor `+`."""
    return b64encode(msgspec.json.encode({"secret": secret, "base": base})).decode()


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["checkout_session_id"])
