"""Requests: report one, read one, list them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from aiohttp import web

from gateway.api import filters, paging, reporting, stored
from gateway.api.context import ApiContext
from gateway.api.reading import json_object, path_id
from gateway.api.request_object import StoredRequest
from gateway.api.responses import json_response
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway


class RequestRoutes:
    """The handlers."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/requests", self.report),
            web.get("/v1/requests", self.list),
            web.get("/v1/requests/{id}", self.read),
        ]

    async def report(self, request: web.Request) -> web.Response:
        """Bill usage that happened elsewhere. 200 also where the id was reported before with the same payload."""
        merchant = await self._context.merchant(request)
        report = reporting.read(await json_object(request))
        return await self._one(await reporting.record(self._context, merchant, report))

    async def read(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        found = await stored.find_flushed(self._context, merchant.merchant_id, path_id(request))
        if found is None:
            raise ObolError("not_found", "this request is not known", param="id")
        return await self._one(found)

    async def _one(self, found: StoredRequest) -> web.Response:
        return json_response((await stored.show(self._context, [found]))[0])

    async def list(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        asked = paging.window(request.query)
        chosen = await filters.read(self._context.store, merchant, request.query)
        if "cursor" not in request.query:
            with suppress(LedgerAway):
                await stored.flushed(self._context, stored.LIST_WAIT_S)
        found = await stored.page(self._context, merchant.merchant_id, chosen, asked)
        shown = await stored.show(self._context, found)
        pairs = list(zip(found, shown, strict=True))
        return json_response(paging.page(pairs, asked, _place, lambda pair: pair[1]))


def _place(pair: tuple[StoredRequest, dict[str, Any]]) -> paging.Place:
    return paging.Place(pair[0].created_at, pair[0].row.request_id)
