"""GET /v1/services: the public catalogue, what `/v1/models` has with its prices. Needs no credential."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from gateway.api.context import ApiContext
from gateway.api.operation import Call, Nothing, Operation, Text
from gateway.core import price
from gateway.prices import Book
from gateway.prices.explain import rates_of


class ServiceQuery(msgspec.Struct):
    """`provider`: only what this provider has, by its name in the provider table."""

    provider: Text | None = None


class LongPrompts(msgspec.Struct):
    """What every token of a request costs whose prompt has more than so many."""

    above_input_tokens: int
    rates: dict[str, str]


class Images(msgspec.Struct):
    """What images of a quality and size cost; null: of any."""

    quality: str | None
    size: str | None
    rates: dict[str, str]


class Tariff(msgspec.Struct, kw_only=True):
    """Dollars for the unit that a rate's name ends with: a million (`_mtok`, `_mchars`, `_mbytes`, `_mpixels`), a
    thousand (`_kcount`), an hour (`_hours`). What has no rate is charged as what it is a part of."""

    rates: dict[str, str]
    long_prompts: list[LongPrompts]


class Pricing(Tariff, kw_only=True):
    """The provider's prices: the ordinary ones, and those of service tiers that have their own, whole."""

    service_tiers: dict[str, Tariff]
    images: list[Images]


class Service(msgspec.Struct, kw_only=True):
    """A model: `id` is the name to ask for it by, `model` the provider's own."""

    id: str
    object: Literal["service"] = "service"
    type: Literal["model"] = "model"
    provider: str
    model: str
    pricing: Pricing


class Services(msgspec.Struct):
    """All of them, in one page."""

    data: list[Service]
    object: Literal["list"] = "list"
    has_more: bool = False


class ServiceRoutes:
    """The call. What it shows is made once for each version of the prices."""

    def __init__(self, context: ApiContext) -> None:
        self._offers = context.offers
        self._book = context.book
        self._made: tuple[str, tuple[Service, ...]] = ("", ())
        self._making = asyncio.Lock()
        """Nobody needs a credential here: all together take one thread."""

    def operations(self) -> list[Operation]:
        if self._offers is None or self._book is None:
            return []
        path, summary = "/v1/services", "List services and their prices"
        query, answer = ServiceQuery, Services
        return [Operation("GET", path, self.list, summary, "Services", query=query, answer=answer, public=True)]

    async def list(self, call: Call[Nothing, ServiceQuery]) -> Services:
        """Every model that has a price and whose provider this installation can call."""
        asked = call.query.provider
        return Services([each for each in await self._all() if asked in (None, each.provider)])

    async def _all(self) -> tuple[Service, ...]:
        assert self._book is not None
        async with self._making:
            book = self._book()
            if self._made[0] != book.version:
                self._made = book.version, await asyncio.to_thread(lambda: tuple(self._services(book)))
            return self._made[1]

    def _services(self, book: Book) -> Iterator[Service]:
        """Takes some hundred milliseconds."""
        assert self._offers is not None
        for offer in self._offers():
            model = offer.name.removeprefix(f"{offer.provider}/")
            if (pricing := _pricing(book, offer.provider, model)) is not None:
                yield Service(id=offer.name, provider=offer.provider, model=model, pricing=pricing)


def _pricing(book: Book, provider: str, model: str) -> Pricing | None:
    found = book.locate(provider, model)
    if found is None:
        return None
    model_price = found.price
    return Pricing(
        **_tariff(model_price.standard),
        service_tiers={name: Tariff(**_tariff(each)) for name, each in sorted(model_price.service_tiers.items())},
        images=[Images(each.quality, each.size, rates_of(each.rates)) for each in model_price.image_classes],
    )


def _tariff(tariff: price.Tariff) -> dict[str, Any]:
    bands = [LongPrompts(each.above_input_tokens, rates_of(each.rates)) for each in tariff.bands]
    return {"rates": rates_of(tariff.rates), "long_prompts": bands}
