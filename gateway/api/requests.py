"""Requests: report one, read one, list them."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import msgspec

from gateway.api import filters, paging, reporting, stored
from gateway.api.context import ApiContext
from gateway.api.filters import Filtered
from gateway.api.operation import Call, Nothing, Operation, Page
from gateway.api.reporting import NewReport
from gateway.api.request_object import Request, StoredRequest
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway


class RequestsQuery(Filtered, kw_only=True):
    """The fields of `Page`, and the filters."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=paging.LIMIT_MAX)] | None = None
    cursor: str | None = None


class RequestRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def operations(self) -> list[Operation]:
        unknown = ("connection_not_found", "meter_not_found")
        charging = (*unknown, "metadata_invalid", "request_id_conflict", "wallet_unavailable", "journal_full")
        return [
            Operation(
                "POST",
                "/v1/requests",
                self.report,
                "Report usage to be charged",
                "Requests",
                body=NewReport,
                answer=Request,
                errors=charging,
            ),
            Operation(
                "GET",
                "/v1/requests",
                self.list,
                "List requests",
                "Requests",
                query=RequestsQuery,
                answer=paging.Listed[Request],
                errors=unknown,
            ),
            Operation(
                "GET",
                "/v1/requests/{id}",
                self.read,
                "Retrieve a request",
                "Requests",
                answer=Request,
                errors=("not_found",),
            ),
        ]

    async def report(self, call: Call[NewReport, Nothing]) -> Request:
        """Bill usage that happened elsewhere. 200 also where the id was reported before with the same payload."""
        report = reporting.read(call.body)
        return await self._one(await reporting.record(self._context, call.merchant, report))

    async def read(self, call: Call[Nothing, Nothing]) -> Request:
        found = await stored.find_flushed(self._context, call.merchant.merchant_id, call.path_id())
        if found is None:
            raise ObolError("not_found", "this request is not known", param="id")
        return await self._one(found)

    async def _one(self, found: StoredRequest) -> Request:
        return (await stored.show(self._context, [found]))[0]

    async def list(self, call: Call[Nothing, RequestsQuery]) -> paging.Listed[Request]:
        asked = paging.window(Page(call.query.limit, call.query.cursor))
        chosen = await filters.read(self._context.store, call.merchant, call.query)
        if call.query.cursor is None:
            with suppress(LedgerAway):
                await stored.flushed(self._context, stored.LIST_WAIT_S)
        found = await stored.page(self._context, call.merchant.merchant_id, chosen, asked)
        shown = await stored.show(self._context, found)
        return paging.page(list(zip(found, shown, strict=True)), asked, _place, lambda pair: pair[1])


def _place(pair: tuple[StoredRequest, Request]) -> paging.Place:
    return paging.Place(pair[0].created_at, pair[0].row.request_id)
