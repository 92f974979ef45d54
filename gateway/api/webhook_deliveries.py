"""The delivery log of a webhook endpoint, and sending something of it again."""

from __future__ import annotations

from typing import Literal

import asyncpg
import msgspec

from gateway.api import paging
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Nothing, Operation, Page, Time
from gateway.api.responses import iso, iso_or_none
from gateway.api.webhooks import find
from gateway.billing import outbox
from gateway.errors import ObolError
from gateway.store.postgres import Store

Status = Literal["waiting", "delivered", "dead"]


class DeliveryQuery(Page, kw_only=True):
    """Of the log, newest first; `status` shows one kind only."""

    status: Status | None = None


class Delivery(msgspec.Struct, kw_only=True):
    """One event for one endpoint. `last_status_code` is null where there was no answer, `last_error` says why.

    `next_attempt_at`: not before then, and not before the customer's earlier events are delivered or dead.
    """

    event_id: str
    webhook_id: str
    event: str
    connection_id: str
    customer_id: str
    status: Status
    attempts: int
    last_status_code: int | None
    last_error: str | None
    created_at: Time
    last_attempt_at: Time | None
    next_attempt_at: Time | None
    finished_at: Time | None


class WebhookDeliveryRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def operations(self) -> list[Operation]:
        every, tag = "/v1/webhooks/{id}/deliveries", "Webhooks"
        return [
            Operation(
                "GET",
                every,
                self.list,
                "List what an endpoint was sent",
                tag,
                query=DeliveryQuery,
                answer=paging.Listed[Delivery],
                errors=("webhook_not_found",),
            ),
            Operation(
                "POST",
                every + "/{event_id}/resend",
                self.resend,
                "Send an event again",
                tag,
                answer=Delivery,
                errors=("webhook_not_found", "webhook_delivery_not_found"),
            ),
        ]

    async def list(self, call: Call[Nothing, DeliveryQuery]) -> paging.Listed[Delivery]:
        endpoint, asked = await find(self._context, call), paging.window(call.query)
        sql = statement(self._context.store, call.query.status)
        async with self._context.store.connection() as db:
            rows = await db.fetch(sql, endpoint["webhook_id"], *asked.after, asked.fetch)
        return paging.page(rows, asked, _place, lambda row: _show(row, endpoint["event_style"]))

    async def resend(self, call: Call[Nothing, Nothing]) -> Delivery:
        """Whatever became of it: it is tried at once, as often as a new one. Not one that is being sent now."""
        endpoint = await find(self._context, call)
        event_id, store = call.request.match_info["event_id"], self._context.store
        if not event_id.isprintable():
            raise _missing()
        key = endpoint["webhook_id"], event_id
        row = await store.row("webhooks.delivery", *key)
        if row is None:
            raise _missing()
        lane = endpoint["webhook_id"], row["connection_id"]
        async with store.transaction() as db:
            claim = await db.fetchval(store.sql("webhooks.lane"), *lane)
            row = await db.fetchrow(store.sql("webhooks.delivery"), *key)
            if row is not None and not (row["status"] == "waiting" and claim is not None):
                row = await db.fetchrow(store.sql("webhooks.resend"), *key)
                await db.execute(store.sql("webhooks.open_lane"), *lane)
        if row is None:
            raise _missing()
        return _show(row, endpoint["event_style"])


def statement(store: Store, status: Status | None) -> str:
    """The query of a page. The status stands in its text, where the planner sees it: the few of millions that are not
    delivered have an index of their own."""
    scope = "" if status is None else f" AND status = '{status}'"
    return store.sql("webhooks.deliveries").replace("{scope}", scope)


def _missing() -> ObolError:
    return ObolError("webhook_delivery_not_found", "this event is not in the endpoint's log", param="event_id")


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["event_id"])


def _show(row: asyncpg.Record, style: outbox.Style) -> Delivery:
    return Delivery(
        event_id=row["event_id"],
        webhook_id=row["webhook_id"],
        event=outbox.name_of(row["event"], style),
        connection_id=row["connection_id"],
        customer_id=row["connection_id"],
        status=row["status"],
        attempts=row["attempts"],
        last_status_code=row["last_status_code"],
        last_error=row["last_error"],
        created_at=iso(row["created_at"]),
        last_attempt_at=iso_or_none(row["last_attempt_at"]),
        next_attempt_at=iso_or_none(row["due_at"]) if row["status"] == "waiting" else None,
        finished_at=iso_or_none(row["finished_at"]),
    )
