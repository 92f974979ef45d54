"""Where card processors send their events: they sign them, and have no secret key of a merchant."""

from __future__ import annotations

from typing import cast

from aiohttp import web

from gateway.api import reading
from gateway.api.context import ApiContext
from gateway.api.responses import json_response
from gateway.cards.contract import Mode
from gateway.errors import ObolError

PATH = "/v1/processor_events/{name}/{mode}"
_MODES = ("test", "live")


class ProcessorEventRoutes:
    """The one route."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        return [web.post(PATH, self.hear)]

    async def hear(self, request: web.Request) -> web.Response:
        """200 when it is recorded; anything else, and the processor sends it again."""
        name, mode = request.match_info["name"], request.match_info["mode"]
        events = self._context.processor_events
        if mode not in _MODES or events is None:
            raise ObolError("not_found", "there is no such address", param="mode")
        body = await reading.raw(request)
        await events.heard(cast(Mode, mode), name, body, request.headers)
        return json_response({"received": True})
