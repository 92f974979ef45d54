"""The price of a call: the provider's cost of its usage and what the meter makes of it; a ceiling beforehand."""

from __future__ import annotations

from functools import partial

import msgspec

from gateway.billing.principals import Principal
from gateway.core.meter import Meter
from gateway.core.price import ModelPrice
from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.ledger.wallets import Price
from gateway.prices import Book, MerchantBook
from gateway.wire.contract import RequestFacts


class PricedCall(msgspec.Struct, frozen=True):
    """What a call cost the merchant and what settles it. `version`: the price book's, None where it knew no price."""

    price: Price
    input_cost_nano: int
    output_cost_nano: int
    cost_nano: int
    passed_on_nano: int
    version: str | None
    unpriced: tuple[str, ...] = ()


class Pricing:
    """Prices calls with one price book. `refuse_unknown`: also a fixed meter needs a known model."""

    def __init__(self, book: Book, *, refuse_unknown: bool, default_max_output_tokens: int) -> None:
        self.book = book
        self._refuse_unknown = refuse_unknown
        self._default_max_output_tokens = default_max_output_tokens

    def of(self, principal: Principal) -> Pricing:
        """The prices that hold for this caller: where its merchant has some of its own, these come first."""
        own = principal.merchant.prices
        if own is None:
            return self
        return Pricing(
            MerchantBook(self.book, own),
            refuse_unknown=self._refuse_unknown,
            default_max_output_tokens=self._default_max_output_tokens,
        )

    def check_model(self, provider: str, facts: RequestFacts, meter: Meter | None, *, charged: bool) -> None:
        """Refuse a model without a price where the customer's charge depends on it (`forward_model_not_supported`), and
        a request that leaves it to the provider (`forward_model_invalid`)."""
        if facts.free or not charged or not (_needs_cost(meter) or self._refuse_unknown):
            return
        if facts.model is None:
            raise ObolError(
                "forward_model_invalid",
                "the request names no model, and the charge depends on its price",
                param="model",
            )
        found = self.book.find(provider, facts.model)
        if found is None or not found.is_priced:
            raise ObolError(
                "forward_model_not_supported",
                f"there is no price for the model {facts.model!r} of {provider}",
                param="model",
            )

    def output_limit(self, provider: str, facts: RequestFacts) -> int:
        """Output tokens that a call is taken to produce at most: what it asks for, else the model's own limit, else
        the setting."""
        if facts.at_most is not None and facts.at_most.output_tokens is not None:
            return facts.at_most.output_tokens
        limit = facts.max_output_tokens
        if limit is None and facts.model and (found := self.book.find(provider, facts.model)) is not None:
            limit = found.max_output_tokens
        return (self._default_max_output_tokens if limit is None else limit) * max(1, facts.choices)

    def ceiling(
        self,
        provider: str,
        facts: RequestFacts,
        body_bytes: int,
        meter: Meter | None,
        *,
        output_tokens: int | None = None,
        prompt: Usage | None = None,
    ) -> int:
        """Nano-dollars that a call of `body_bytes` cannot exceed: no token is shorter than a byte.

        `output_tokens`: as long as it produces no more of them, else its limit. `prompt`: what the provider has told of
        it. Rises with the output.
        """
        if output_tokens is None:
            output_tokens = 0 if facts.free else self.output_limit(provider, facts)
        told = facts.usage if facts.at_most is None else None
        usage = told or _usage_max(facts, body_bytes, prompt, output_tokens)
        found = self.book.find(provider, facts.model) if facts.model and _needs_cost(meter) else None
        cost_nano = self._dearest(provider, found, usage, facts.service_tier) if found else 0
        if meter is None:
            return cost_nano
        if meter.tier_type == "characters_1m" and facts.usage is None:
            usage = Usage(input_characters=body_bytes, output_characters=8 * output_tokens)
        return meter.ceiling(meter.units(usage), cost_nano)

    def _dearest(self, provider: str, price: ModelPrice, usage: Usage, service_tier: str | None) -> int:
        """At the standard price or that of the tier asked for, should all output be reasoning that costs more, and
        should images whose kind is left to the provider be of the dearest."""
        usages, tiers = [usage], {None, service_tier}
        if price.standard.rates.reasoning_mtok is not None:
            usages.append(msgspec.structs.replace(usage, reasoning_tokens=usage.output_tokens))
        if usage.images and price.image_classes:
            usages += _images_may_be(price, usage)
        costs = (price.cost(each, tier, partial(self.book.find, provider)) for each in usages for tier in tiers)
        return max(cost.total_nano for cost in costs)

    def most(
        self, provider: str, model: str | None, usage: Usage, service_tier: str | None, meter: Meter | None
    ) -> int:
        """Nano-dollars that `usage` costs at most, wherever in the tiers of its meter it may fall."""
        cost = self.book.cost(provider, model, usage, service_tier) if model else None
        cost_nano = cost.total_nano if cost else 0
        return cost_nano if meter is None else meter.ceiling(meter.units(usage), cost_nano)

    def price(
        self,
        provider: str,
        model: str | None,
        usage: Usage,
        service_tier: str | None,
        meter: Meter | None,
        *,
        charged: bool,
    ) -> PricedCall:
        """The cost of `usage` and what it debits: nothing unless `charged`; the cost itself without a meter."""
        cost = self.book.cost(provider, model, usage, service_tier) if model else None
        cost_nano = cost.total_nano if cost else 0
        if not charged:
            price, passed_on = Price(flat_nano=0, cost_nano=cost_nano), 0
        elif meter is None:
            price, passed_on = Price(flat_nano=cost_nano, cost_nano=cost_nano), cost_nano
        else:
            units, passed_on = meter.units(usage), meter.passed_on(cost_nano)
            flat_nano = 0 if meter.graduated else passed_on + meter.fee(units, cost_nano)
            price = Price.of(meter, units, flat_nano, cost_nano)
        return PricedCall(
            price=price,
            input_cost_nano=cost.input_nano if cost else 0,
            output_cost_nano=cost.output_nano if cost else 0,
            cost_nano=cost_nano,
            passed_on_nano=passed_on,
            version=self.book.version if cost else None,
            unpriced=cost.unpriced if cost else _without_price(model, usage),
        )


def _without_price(model: str | None, usage: Usage) -> tuple[str, ...]:
    """What is named as unpriced of a model that no list has. Plain HTTP, whose model is a path, needs no price."""
    used = model is not None and not model.startswith("/") and any(msgspec.structs.astuple(usage))
    return ("model",) if used else ()


def _images_may_be(price: ModelPrice, usage: Usage) -> list[Usage]:
    """The same images as each class, as far as the request leaves it open."""
    open_quality, open_size = (word in (None, "auto") for word in (usage.image_quality, usage.image_size))
    return [
        msgspec.structs.replace(
            usage,
            image_quality=each.quality if open_quality else usage.image_quality,
            image_size=each.size if open_size else usage.image_size,
        )
        for each in price.image_classes
    ]


def _usage_max(facts: RequestFacts, body_bytes: int, prompt: Usage | None, output_tokens: int) -> Usage:
    at_most = facts.at_most
    if prompt is not None:
        most = at_most or Usage()
        return msgspec.structs.replace(
            prompt,
            output_tokens=output_tokens,
            reasoning_tokens=None,
            output_audio_tokens=most.output_audio_tokens,
            output_image_tokens=most.output_image_tokens,
            web_searches=most.web_searches,
            file_searches=most.file_searches,
            extra=most.extra,
        )
    if at_most is None:
        return Usage(input_tokens=body_bytes, output_tokens=output_tokens)
    known = at_most.input_tokens
    return msgspec.structs.replace(
        at_most, input_tokens=body_bytes if known is None else known, output_tokens=output_tokens
    )


def _needs_cost(meter: Meter | None) -> bool:
    return meter is None or meter.base_cost_payer == "wallet" or meter.rate_type == "percentage"
