"""GET /v1/models: the models that have a price and whose provider this installation can call. Needs no credential.

Three vendors' clients ask at the same path, so the shape is told by what they send along: `anthropic-version`,
`x-goog-api-key` (or `key`, or the path /v1beta), else OpenAI's. When a model was made is not known: `created` is 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

import msgspec
from aiohttp import web

from gateway.api.context import ApiContext
from gateway.api.operation import Call, Nothing, Operation
from gateway.api.responses import DIALECT
from gateway.billing.catalogue import Offer
from gateway.billing.spend_keys import Rules
from gateway.errors import ObolError
from gateway.wire import credential
from gateway.wire.dropin import OPENAI_BASES

Shape = Literal["openai", "anthropic", "google"]
TAG = "Models"
CREATED_UNKNOWN = "1970-01-01T00:00:00Z"


class Model(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A model in one vendor's shape: OpenAI's has `id`, `object`, `created`, `owned_by`; Anthropic's `type`, `id`,
    `display_name`, `created_at`; Google's `name` and `displayName`."""

    id: str | msgspec.UnsetType = msgspec.UNSET
    object: Literal["model"] | msgspec.UnsetType = msgspec.UNSET
    created: int | msgspec.UnsetType = msgspec.UNSET
    owned_by: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["model"] | msgspec.UnsetType = msgspec.UNSET
    display_name: str | msgspec.UnsetType = msgspec.UNSET
    created_at: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    displayName: str | msgspec.UnsetType = msgspec.UNSET


class Models(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All models: in `data` as OpenAI and Anthropic have it, in `models` as Google has it."""

    object: Literal["list"] | msgspec.UnsetType = msgspec.UNSET
    data: list[Model] | msgspec.UnsetType = msgspec.UNSET
    has_more: bool | msgspec.UnsetType = msgspec.UNSET
    first_id: str | msgspec.UnsetType = msgspec.UNSET
    last_id: str | msgspec.UnsetType = msgspec.UNSET
    models: list[Model] | msgspec.UnsetType = msgspec.UNSET


class ModelRoutes:
    """What is on offer: the same for everybody."""

    def __init__(self, context: ApiContext) -> None:
        self._offers = context.offers
        self._principals = context.principals
        self._asking = asyncio.Lock()
        """Nobody needs a credential here: all together take one thread."""

    def operations(self) -> list[Operation]:
        if self._offers is None:
            return []
        refusals = ("unauthorized", "connection_disabled", "meter_not_on_plan", "meter_not_found")
        bases = (*(base for base in OPENAI_BASES if base != "/v1"), "/v1beta")
        return [
            Operation(
                "GET",
                "/v1/models",
                self.list,
                "List models on offer",
                TAG,
                answer=Models,
                errors=refusals,
                aliases=tuple(f"{base}/models" for base in bases),
                public=True,
            ),
            Operation(
                "GET",
                "/v1/models/{id:.+}",
                self.retrieve,
                "Retrieve a model on offer",
                TAG,
                answer=Model,
                errors=("not_found", *refusals),
                aliases=tuple(f"{base}/models/{{id:.+}}" for base in bases),
                public=True,
            ),
            Operation("GET", "/v1/tcp_warming", self.warm, "Nothing", TAG, answer=Nothing, public=True),
        ]

    async def list(self, call: Call[Nothing, Nothing]) -> Models:
        """All of them, in one page. Errors in the client's own dialect: a spend key may be none any more."""
        shape = _shape(call.request)
        shown = [_SHOWN[shape](offer) for offer in await self._visible(call.request)]
        if shape == "google":
            return Models(models=shown)
        page = Models(object="list", data=shown, has_more=False)
        if shape == "anthropic" and shown:
            page.first_id, page.last_id = shown[0].id, shown[-1].id
        return page

    async def retrieve(self, call: Call[Nothing, Nothing]) -> Model:
        """One of them. Errors in the client's own dialect."""
        name, shape = call.request.match_info["id"], _shape(call.request)
        for offer in await self._visible(call.request):
            if offer.name == name:
                return _SHOWN[shape](offer)
        raise ObolError("not_found", f"there is no model {name[:200]!r} on offer here", param="model")

    async def warm(self, call: Call[Nothing, Nothing]) -> Nothing:
        """Cerebras' client asks for this to have a connection; it reads nothing of the answer."""
        return Nothing()

    async def _visible(self, request: web.Request) -> tuple[Offer, ...]:
        """All; with a spend key, which nobody needs here, those that it may ask for. Raise ObolError."""
        offers, rules = await self._all(), await self._rules(request)
        if rules is None:
            return offers
        return tuple(
            each for each in offers if rules.allows(each.provider, each.name.removeprefix(f"{each.provider}/"))
        )

    async def _rules(self, request: web.Request) -> Rules | None:
        try:
            text = credential.find(request.headers.get, request.query.get("key"))
        except ObolError:
            return None
        if not text.startswith(credential.SPEND_KEY_PREFIX):
            return None
        return (await self._principals.principal(text)).rules

    async def _all(self) -> tuple[Offer, ...]:
        assert self._offers is not None
        async with self._asking:
            return await asyncio.to_thread(self._offers)


def _shape(request: web.Request) -> Shape:
    """That of the answer, and of whatever goes wrong before there is one."""
    shape: Shape = "anthropic" if "anthropic-version" in request.headers else "openai"
    if request.path.startswith("/v1beta/models") or "x-goog-api-key" in request.headers or "key" in request.query:
        shape = "google"
    request[DIALECT] = shape
    return shape


def _as_openai(offer: Offer) -> Model:
    return Model(id=offer.name, object="model", created=0, owned_by=offer.provider)


def _as_anthropic(offer: Offer) -> Model:
    return Model(type="model", id=offer.name, display_name=offer.name, created_at=CREATED_UNKNOWN)


def _as_google(offer: Offer) -> Model:
    return Model(name=f"models/{offer.name}", displayName=offer.name)


_SHOWN: dict[Shape, Callable[[Offer], Model]] = {
    "openai": _as_openai,
    "anthropic": _as_anthropic,
    "google": _as_google,
}
