"""What a call is held for: no charge within its bounds exceeds it, whatever its prompt turns out to be."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.billing.pricing import Pricing
from gateway.core.meter import from_definition
from gateway.core.price import ModelPrice, Rates, Tariff
from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.prices import BookContent, PriceBook, read_operator_prices
from gateway.prices.book import Clause, PricedModel, ProviderPrices
from gateway.wire.contract import ALL, RequestFacts

PRICES = """
[[price]]
provider = "p"
models = ["plain"]
rates = { input_mtok = "3", output_mtok = "12" }

[[price]]
provider = "p"
models = ["free"]
rates = { input_mtok = "0" }

[[price]]
provider = "p"
models = ["limited"]
rates = { input_mtok = "1", cache_write_1h_mtok = "2", output_mtok = "5", reasoning_mtok = "8" }
service_tiers = { priority = { input_mtok = "2", output_mtok = "10" } }
max_output_tokens = 9_000
"""
UNRATED = ModelPrice(model="published", standard=Tariff(Rates()))
METERS = {
    "flat": from_definition("m1", 1, {"tiers": [{"start": 0, "rate": "20"}]}),
    "tiers": from_definition("m2", 1, {"tiers": [{"start": 0, "rate": "1"}, {"start": 10, "rate": "30"}]}),
    "markup": from_definition("m3", 1, {"rate_type": "percentage", "tiers": [{"start": 0, "rate": "25"}]}),
    "call": from_definition("m4", 1, {"tier_type": "requests", "tiers": [{"start": 0, "rate": "0.01"}]}),
    "cost": None,
}


@pytest.fixture(scope="module")
def pricing(tmp_path_factory: pytest.TempPathFactory) -> Pricing:
    path: Path = tmp_path_factory.mktemp("prices") / "prices.toml"
    path.write_text(PRICES, encoding="utf-8")
    book = PriceBook(BookContent(read_operator_prices(path), {}, {}))
    return Pricing(book, refuse_unknown=False, default_max_output_tokens=4_096)


@pytest.mark.parametrize(
    ("facts", "tokens"),
    [
        (RequestFacts(model="plain", max_output_tokens=100), 100),
        (RequestFacts(model="plain", max_output_tokens=100, choices=3), 300),
        (RequestFacts(model="plain"), 4_096),
        (RequestFacts(model="limited"), 9_000),
        (RequestFacts(model="limited", max_output_tokens=100), 100),
        (RequestFacts(model="limited", choices=2), 18_000),
        (RequestFacts(model="unknown"), 4_096),
        (RequestFacts(model="plain", max_output_tokens=0), 0),
        (RequestFacts(model="plain", at_most=Usage(output_tokens=7)), 7),
    ],
)
def test_the_output_that_is_held_for(pricing: Pricing, facts: RequestFacts, tokens: int) -> None:
    """What is asked for, else the model's own limit, else the setting."""
    assert pricing.output_limit("p", facts) == tokens


@given(
    model=st.sampled_from(["plain", "limited"]),
    meter=st.sampled_from(sorted(METERS)),
    body_bytes=st.integers(1, 100_000),
    held=st.integers(0, 50_000),
    used=st.integers(0, 50_000),
    prompt=st.integers(0, 100_000),
    reasoning=st.integers(0, 50_000),
    tier=st.sampled_from([None, "priority"]),
    position=st.integers(0, 100),
    cached=st.booleans(),
)
def test_no_call_costs_more_than_its_hold(
    pricing, model, meter, body_bytes, held, used, prompt, reasoning, tier, position, cached
):
    """Prompt and output within the bounds, in any tier of meter and service, the output reasoning or not."""
    used, prompt = min(used, held), min(prompt, body_bytes)
    at_most = Usage(input_tokens=body_bytes, cache_write_1h_tokens=ALL) if cached else None
    facts = RequestFacts(model=model, service_tier=tier, at_most=at_most)
    hold_nano = pricing.ceiling("p", facts, body_bytes, METERS[meter], output_tokens=held)
    written = prompt if cached else None
    usage = Usage(
        input_tokens=prompt,
        cache_write_tokens=written,
        cache_write_1h_tokens=written,
        output_tokens=used,
        reasoning_tokens=min(reasoning, used),
    )
    priced = pricing.price("p", model, usage, tier, METERS[meter], charged=True)
    fee_nano = priced.price.meter.fee(priced.price.units, priced.cost_nano, position) if meter == "tiers" else 0
    assert priced.price.flat_nano + fee_nano <= hold_nano
    assert pricing.most("p", model, usage, tier, METERS[meter]) <= hold_nano
    more = pricing.ceiling("p", facts, body_bytes, METERS[meter], output_tokens=held + 1_000)
    assert more >= hold_nano
    told = pricing.ceiling("p", facts, body_bytes, METERS[meter], output_tokens=held, prompt=usage)
    assert priced.price.flat_nano + fee_nano <= told <= hold_nano


PAYER = {"tiers": [{"start": 0, "rate": "20"}], "base_cost_payer": "wallet"}


@pytest.mark.parametrize(
    ("meter", "model", "code"),
    [
        ("markup", "plain", None),
        ("markup", "free", None),
        ("markup", "unknown", "forward_model_not_supported"),
        ("markup", "published-without-a-rate", "forward_model_not_supported"),
        ("markup", None, "forward_model_invalid"),
        ("payer", "unknown", "forward_model_not_supported"),
        ("cost", "unknown", "forward_model_not_supported"),
        ("cost", None, "forward_model_invalid"),
        ("flat", "unknown", None),
        ("flat", "published-without-a-rate", None),
        ("flat", None, None),
    ],
)
@pytest.mark.parametrize("refuse_unknown", [False, True])
def test_a_model_whose_price_is_needed_is_refused(
    pricing: Pricing, meter: str, model: str | None, code: str | None, refuse_unknown: bool
) -> None:
    """Where the charge depends on it; where it does not, as `unpriced_models` says. Never where nothing is charged."""
    unrated = {"p": ProviderPrices((PricedModel(Clause("starts_with", "published"), UNRATED),))}
    book = PriceBook(BookContent(pricing.book._content.operator, unrated, {}))
    meters = METERS | {"payer": from_definition("m5", 1, PAYER)}
    one = Pricing(book, refuse_unknown=refuse_unknown, default_max_output_tokens=10)
    facts = RequestFacts(model=model)
    if refuse_unknown and model != "plain" and code is None and model != "free":
        code = "forward_model_invalid" if model is None else "forward_model_not_supported"
    one.check_model("p", facts, meters[meter], charged=False)
    one.check_model("p", msgspec.structs.replace(facts, free=True), meters[meter], charged=True)
    if code is None:
        one.check_model("p", facts, meters[meter], charged=True)
        return
    with pytest.raises(ObolError) as refused:
        one.check_model("p", facts, meters[meter], charged=True)
    assert (refused.value.code, refused.value.status, refused.value.param) == (code, 400, "model")


def test_a_model_without_any_price_is_named(pricing: Pricing) -> None:
    """Else a call that costs the merchant money would show nowhere."""

    def unpriced(model: str | None, usage: Usage) -> tuple[str, ...]:
        return pricing.price("p", model, usage, None, None, charged=True).unpriced

    assert unpriced("unknown", Usage(output_tokens=1)) == ("model",)
    assert unpriced("unknown", Usage(output_tokens=0)) == ()
    assert unpriced("/v1/search", Usage(output_tokens=1)) == ()
    assert unpriced(None, Usage(output_tokens=1)) == ()
    assert unpriced("plain", Usage(output_tokens=1)) == ()
