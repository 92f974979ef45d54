"""Which price a call is charged: that of the model that answered, at the prices that its hold was made with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from gateway.billing.pricing import Pricing
from gateway.core.price import ModelPrice, Rates, Tariff
from gateway.ledger.row import RequestIds
from gateway.prices import Book, BookContent, MerchantBook, PriceBook
from gateway.prices.book import Clause, PricedModel, ProviderPrices
from gateway.proxy.call import Call
from gateway.proxy.charging import priced_model, pricing_of
from gateway.proxy.parts import Parts
from gateway.wire.contract import Reading, RequestFacts

DATED = "model-2026-01-01"


def prices(**names: bool) -> dict[str, ProviderPrices]:
    """By name: whether it has a rate."""
    models = (
        PricedModel(
            Clause("equals", name.replace("_", "-")),
            ModelPrice(model=name, standard=Tariff(Rates(input_mtok=10**18) if priced else Rates())),
        )
        for name, priced in names.items()
    )
    return {"openai": ProviderPrices(tuple(models))}


def book(operator: dict[str, ProviderPrices], **published: bool) -> PriceBook:
    return PriceBook(BookContent(operator, prices(**published), {}))


def parts_with(prices_now: Book) -> Parts:
    pricing = Pricing(prices_now, refuse_unknown=False, default_max_output_tokens=1)
    return cast(Parts, SimpleNamespace(pricing=pricing))


def call_for(model: str | None) -> Call:
    call = Call("POST", RequestIds())
    call.principal = SimpleNamespace(merchant=SimpleNamespace(prices=None))  # type: ignore[assignment]
    call.provider_name, call.facts = "openai", RequestFacts(model=model)
    return call


PUBLISHED = book({}, model=True, model_2026_01_01=True, shown=False)
OPERATORS = book(prices(model=True), model=True, model_2026_01_01=True)
BOTH = book(prices(model=True, model_2026_01_01=True), model_2026_01_01=True)


@pytest.mark.parametrize(
    ("known", "asked", "served", "charged"),
    [
        (PUBLISHED, "model", DATED, DATED),
        (PUBLISHED, "model", "model", "model"),
        (PUBLISHED, "model", "nobody-knows-it", "model"),
        (PUBLISHED, "model", "shown", "model"),  # a name that is published without a price makes no call free
        (PUBLISHED, "model", None, "model"),
        (PUBLISHED, None, DATED, DATED),
        (PUBLISHED, None, "nobody-knows-it", "nobody-knows-it"),
        (OPERATORS, "model", DATED, "model"),  # a price of the operator's own is not undone by a dated name
        (BOTH, "model", DATED, DATED),
        (MerchantBook(BOTH, book(prices(model=True))), "model", DATED, "model"),
        (MerchantBook(OPERATORS, book(prices(model_2026_01_01=True))), "model", DATED, DATED),
    ],
)
def test_the_model_that_is_charged(known: Book, asked: str | None, served: str | None, charged: str) -> None:
    assert priced_model(parts_with(known), call_for(asked), Reading(model=served)) == charged


def test_prices_that_change_are_those_of_later_calls() -> None:
    parts, call = parts_with(PUBLISHED), call_for("model")
    held_with = pricing_of(parts, call)
    parts.pricing = Pricing(OPERATORS, refuse_unknown=False, default_max_output_tokens=1)
    assert pricing_of(parts, call) is held_with
    assert pricing_of(parts, call_for("model")).book is OPERATORS
