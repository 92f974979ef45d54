"""Webhook endpoints: list, read, create, change, rotate the secret, delete. Their log is in webhook_deliveries.py."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.api import paging
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Deleted, Nothing, Operation, Page, Text, Time
from gateway.api.reading import invalid
from gateway.api.responses import iso, iso_or_none
from gateway.billing import outbox
from gateway.errors import ObolError
from gateway.store.secrets import new_id
from gateway.wire import webhook_target
from gateway.wire.webhook_signature import Style as SignatureStyle

ENDPOINTS_MAX = 3
HURRY_PAGE = 1_000
RESOLVE_TIMEOUT_S = 2.0
"""A name that is not resolved by then is taken as it is: it is checked again whenever something is sent to it."""
EventName = Literal[
    "connection.created",
    "connection.wallet.balance.updated",
    "connection.deleted",
    "customer.created",
    "customer.wallet.balance.updated",
    "customer.deleted",
    "checkout.completed",
    "subscription.updated",
]
Url = Annotated[
    str, Meta(min_length=1, max_length=webhook_target.URL_MAX_CHARACTERS, extra_json_schema={"format": "uri"})
]
Events = Annotated[list[EventName], Meta(min_length=1, max_length=20)]
Status = Literal["active", "paused"]


class NewWebhook(msgspec.Struct, kw_only=True):
    """`events`: which are sent, by the names of either style; without it all. `event_style`: how they are named."""

    name: Text
    url: Url
    events: Events | None = None
    event_style: outbox.Style = "connection"
    signature_style: SignatureStyle = "default"


class ChangedWebhook(msgspec.Struct, kw_only=True):
    """What changes of an endpoint. `events` null: all of them again. `status` paused: nothing is written for it."""

    name: Text | None = None
    url: Url | None = None
    events: Events | UnsetType | None = UNSET
    event_style: outbox.Style | None = None
    signature_style: SignatureStyle | None = None
    status: Status | None = None


class Webhook(msgspec.Struct, kw_only=True):
    """`paused_reason`: merchant (you did), gone (it answered 410), failing (nothing reached it until an event was
    dead). `failing_since`: of the first failure since the last success."""

    webhook_id: str
    name: str
    url: str
    status: Status
    paused_reason: Literal["merchant", "gone", "failing"] | None
    events: list[str] | None
    event_style: outbox.Style
    signature_style: SignatureStyle
    failing_since: Time | None
    created_at: Time


class WebhookWithSecret(Webhook, kw_only=True):
    """`webhook_secret` is shown here and never again."""

    webhook_secret: str


class WebhookRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def operations(self) -> list[Operation]:
        every, one, tag = "/v1/webhooks", "/v1/webhooks/{id}", "Webhooks"
        missing = ("webhook_not_found",)
        listed = paging.Listed[Webhook]
        return [
            Operation("GET", every, self.list, "List webhook endpoints", tag, query=Page, answer=listed),
            Operation(
                "POST",
                every,
                self.create,
                "Create a webhook endpoint",
                tag,
                body=NewWebhook,
                answer=WebhookWithSecret,
                status=201,
                errors=("webhook_limit_reached",),
            ),
            Operation("GET", one, self.read, "Retrieve a webhook endpoint", tag, answer=Webhook, errors=missing),
            Operation(
                "PATCH",
                one,
                self.change,
                "Change a webhook endpoint",
                tag,
                body=ChangedWebhook,
                answer=Webhook,
                errors=missing,
            ),
            Operation("DELETE", one, self.delete, "Delete a webhook endpoint", tag, answer=Deleted, errors=missing),
            Operation(
                "POST",
                one + "/rotate",
                self.rotate,
                "Give a webhook endpoint a new secret",
                tag,
                answer=WebhookWithSecret,
                errors=missing,
            ),
        ]

    async def list(self, call: Call[Nothing, Page]) -> paging.Listed[Webhook]:
        asked = paging.window(call.query)
        rows = await self._context.store.rows("webhooks.page", call.merchant.merchant_id, *asked.after, asked.fetch)
        return paging.page(rows, asked, _place, show)

    async def read(self, call: Call[Nothing, Nothing]) -> Webhook:
        return show(await find(self._context, call))

    async def create(self, call: Call[NewWebhook, Nothing]) -> WebhookWithSecret:
        merchant_id, body, store = call.merchant.merchant_id, call.body, self._context.store
        await self._check(body.url)
        given = (body.name, body.url, body.signature_style, body.event_style, _base_names(body.events))
        async with store.transaction() as db:
            await db.execute(store.sql("webhooks.lock_merchant"), merchant_id)
            if await db.fetchval(store.sql("webhooks.count"), merchant_id) >= ENDPOINTS_MAX:
                raise ObolError("webhook_limit_reached", f"there may be {ENDPOINTS_MAX} webhook endpoints; delete one")
            row = await db.fetchrow(store.sql("webhooks.create"), new_id("wh_"), merchant_id, *given)
        return self._with_secret(row)

    async def change(self, call: Call[ChangedWebhook, Nothing]) -> Webhook:
        body, store = call.body, self._context.store
        if body.url is not None:
            await self._check(body.url)
        webhook_id = _id(call)
        async with store.transaction() as db:
            row = await db.fetchrow(store.sql("webhooks.lock"), call.merchant.merchant_id, webhook_id)
            if row is None:
                raise _missing()
            await db.execute(store.sql("webhooks.change"), webhook_id, *_changed(row, body))
            if body.status == "paused":
                await db.execute(store.sql("webhooks.pause"), webhook_id)
            elif body.status == "active" and row["status"] == "paused":
                await db.execute(store.sql("webhooks.resume"), webhook_id)
            after = await db.fetchrow(store.sql("webhooks.lock"), call.merchant.merchant_id, webhook_id)
        if body.status == "active":  # also where it was: a request before may have failed half-way here
            await self._hurry(webhook_id)
        return show(after)

    async def _hurry(self, webhook_id: str) -> None:
        """Page by page, for whoever tells something of these customers waits for the lanes that are being changed."""
        lanes, last = HURRY_PAGE, ""
        while lanes == HURRY_PAGE:
            page = await self._context.store.row("webhooks.hurry", webhook_id, last, HURRY_PAGE)
            assert page is not None
            lanes, last = page["lanes"], page["last"]

    async def rotate(self, call: Call[Nothing, Nothing]) -> WebhookWithSecret:
        """The secret before goes on signing, too, for a day; after several within a day the first one does as well."""
        row = await self._context.store.row("webhooks.rotate", call.merchant.merchant_id, _id(call))
        if row is None:
            raise _missing()
        return self._with_secret(row)

    async def delete(self, call: Call[Nothing, Nothing]) -> Deleted:
        """What waits for it is not sent any more."""
        webhook_id = _id(call)
        if await self._context.store.row("webhooks.delete", call.merchant.merchant_id, webhook_id) is None:
            raise _missing()
        return Deleted(webhook_id)

    async def _check(self, url: str) -> None:
        """Raise ObolError `invalid_request` where nothing would ever be sent to `url`."""
        target = webhook_target.parse(url, frozenset(self._context.settings.webhook_private_hosts))
        if self._context.webhook_addresses is None:
            return
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                await self._context.webhook_addresses(target.host, target.port)
        except TimeoutError:
            return
        except ObolError as error:
            if error.code == "forward_target_invalid":
                raise invalid("url", "has a host with an address that is not public") from None

    def _with_secret(self, row: asyncpg.Record) -> WebhookWithSecret:
        secret = self._context.derived.webhook_secret(row["webhook_id"], row["secret_number"])
        return WebhookWithSecret(**_fields(row), webhook_secret=secret)


def show(row: asyncpg.Record) -> Webhook:
    return Webhook(**_fields(row))


async def find(context: ApiContext, call: Call[Any, Any]) -> asyncpg.Record:
    """The merchant's endpoint that the path names. Raise ObolError `webhook_not_found`."""
    row = await context.store.row("webhooks.find", call.merchant.merchant_id, _id(call))
    if row is None:
        raise _missing()
    return row


def _id(call: Call[Any, Any]) -> str:
    return call.path_id("webhook_not_found")


def _missing() -> ObolError:
    return ObolError("webhook_not_found", "this webhook endpoint is not known", param="id")


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["webhook_id"])


def _base_names(events: list[EventName] | None) -> list[str] | None:
    return None if events is None else sorted({outbox.base_name(each) for each in events})


def _changed(row: asyncpg.Record, body: ChangedWebhook) -> tuple[Any, ...]:
    """Name, URL, both styles and events, with what `body` changes."""
    names = ("name", "url", "signature_style", "event_style")
    kept = [row[name] if (given := getattr(body, name)) is None else given for name in names]
    return *kept, row["events"] if body.events is UNSET else _base_names(body.events)


def _fields(row: asyncpg.Record) -> dict[str, Any]:
    style, events = row["event_style"], row["events"]
    names = ("webhook_id", "name", "url", "status", "paused_reason", "event_style", "signature_style")
    return {
        **{name: row[name] for name in names},
        "events": None if events is None else [outbox.name_of(each, style) for each in events],
        "failing_since": iso_or_none(row["failing_since"]),
        "created_at": iso(row["created_at"]),
    }
