"""The price of a call: the provider's cost of its usage and what the meter makes of it; a ceiling beforehand."""

from __future__ import annotations

import msgspec

from gateway.core.meter import Meter
from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.ledger.wallets import Price
from gateway.prices import PriceBook
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

    def __init__(self, book: PriceBook, *, refuse_unknown: bool, default_max_output_tokens: int) -> None:
        self.book = book
        self._refuse_unknown = refuse_unknown
        self._default_max_output_tokens = default_max_output_tokens

    def check_model(self, provider: str, facts: RequestFacts, meter: Meter | None, *, charged: bool) -> None:
        """Refuse a model without a price where the customer's charge depends on it (`forward_model_not_supported`)."""
        if facts.model is None or facts.free or not charged:
            return
        depends = meter is None or meter.base_cost_payer == "wallet" or meter.rate_type == "percentage"
        if (depends or self._refuse_unknown) and self.book.find(provider, facts.model) is None:
            raise ObolError(
                "forward_model_not_supported",
                f"there is no price for the model {facts.model!r} of {provider}",
                param="model",
            )

    def ceiling(self, provider: str, facts: RequestFacts, body_bytes: int, meter: Meter | None) -> int:
        """Nano-dollars that a call of `body_bytes` cannot exceed: no token is shorter than a byte."""
        output_tokens = (facts.max_output_tokens or self._default_max_output_tokens) * max(1, facts.choices)
        usage = facts.usage or Usage(input_tokens=body_bytes, output_tokens=0 if facts.free else output_tokens)
        found = self.book.find(provider, facts.model) if facts.model and _needs_cost(meter) else None
        cost_nano = found.cost(usage).total_nano if found else 0
        if meter is None:
            return cost_nano
        if meter.tier_type == "characters_1m" and facts.usage is None:
            usage = Usage(input_characters=body_bytes, output_characters=8 * output_tokens)
        return meter.ceiling(meter.units(usage), cost_nano)

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
            price, passed_on = Price(flat_nano=0), 0
        elif meter is None:
            price, passed_on = Price(flat_nano=cost_nano), cost_nano
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
            unpriced=cost.unpriced if cost else (),
        )


def _needs_cost(meter: Meter | None) -> bool:
    return meter is None or meter.base_cost_payer == "wallet" or meter.rate_type == "percentage"
