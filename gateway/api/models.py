"""GET /v1/models: the models that have a price and whose provider this installation can call. Needs no credential.

Three vendors' clients ask at the same path, so the shape is told by what they send along: `anthropic-version`,
`x-goog-api-key` (or `key`, or the path /v1beta), else OpenAI's. When a model was made is not known: `created` is 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from aiohttp import web

from gateway import errors
from gateway.api.context import ApiContext
from gateway.api.responses import json_response
from gateway.billing.catalogue import Offer
from gateway.errors import ObolError
from gateway.wire.dropin import OPENAI_BASES

Shape = Literal["openai", "anthropic", "google"]
CREATED_UNKNOWN = "1970-01-01T00:00:00Z"


class ModelRoutes:
    """What is on offer: the same for everybody."""

    def __init__(self, context: ApiContext) -> None:
        self._offers = context.offers
        self._asking = asyncio.Lock()
        """Nobody needs a credential here: all together take one thread."""

    def routes(self) -> list[web.RouteDef]:
        if self._offers is None:
            return []
        bases = (*OPENAI_BASES, "/v1beta")
        return [
            *(web.get(f"{base}/models", self.list) for base in bases),
            *(web.get(f"{base}/models/{{id:.+}}", self.retrieve) for base in bases),
            web.get("/v1/tcp_warming", self.warm),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """All of them, in one page."""
        offers, shape = await self._all(), _shape(request)
        shown = [_SHOWN[shape](offer) for offer in offers]
        if shape == "google":
            return json_response({"models": shown})
        page: dict[str, Any] = {"object": "list", "data": shown, "has_more": False}
        if shape == "anthropic":
            page |= {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
        return json_response(page)

    async def retrieve(self, request: web.Request) -> web.Response:
        """One of them. 404 in the client's own dialect."""
        name, shape = request.match_info["id"], _shape(request)
        for offer in await self._all():
            if offer.name == name:
                return json_response(_SHOWN[shape](offer))
        missing = ObolError("not_found", f"there is no model {name[:200]!r} on offer here", param="model")
        return json_response(errors.body(missing, shape), missing.status)

    async def warm(self, request: web.Request) -> web.Response:
        """Cerebras' client asks for this to have a connection; it reads nothing of the answer."""
        return json_response({})

    async def _all(self) -> tuple[Offer, ...]:
        assert self._offers is not None
        async with self._asking:
            return await asyncio.to_thread(self._offers)


def _shape(request: web.Request) -> Shape:
    if request.path.startswith("/v1beta/models") or "x-goog-api-key" in request.headers or "key" in request.query:
        return "google"
    return "anthropic" if "anthropic-version" in request.headers else "openai"


def _as_openai(offer: Offer) -> dict[str, Any]:
    return {"id": offer.name, "object": "model", "created": 0, "owned_by": offer.provider}


def _as_anthropic(offer: Offer) -> dict[str, Any]:
    return {"type": "model", "id": offer.name, "display_name": offer.name, "created_at": CREATED_UNKNOWN}


def _as_google(offer: Offer) -> dict[str, Any]:
    return {"name": f"models/{offer.name}", "displayName": offer.name}


_SHOWN: dict[Shape, Callable[[Offer], dict[str, Any]]] = {
    "openai": _as_openai,
    "anthropic": _as_anthropic,
    "google": _as_google,
}
