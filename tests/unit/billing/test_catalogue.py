"""Which provider a model is asked of, by a table of its own and prices of its own."""

from __future__ import annotations

import pytest

from gateway.billing.catalogue import Catalogue
from gateway.core.price import ModelPrice, Rates, Tariff
from gateway.errors import ConfigurationError, ObolError
from gateway.prices import BookContent, PriceBook
from gateway.prices.book import Clause, PricedModel, ProviderPrices
from gateway.providers import Providers, parse
from gateway.wire.dropin import route_of

CHAT, MESSAGES = route_of("/v1/chat/completions"), route_of("/v1/messages")


def table(**changes: dict) -> dict:
    rows = [
        {"name": "first", "base": "https://first.example.com/v1", "formats": ["openai"]},
        {"name": "second", "base": "https://second.example.com/v1", "formats": ["openai", "anthropic"]},
        {"name": "secondNative", "base": "https://second.example.com/n", "formats": ["anthropic"]},
        {"name": "third", "base": "https://third.example.com/v1", "formats": ["anthropic"]},
    ]
    rows[1]["bases"] = {"anthropic": "https://second.example.com/anthropic/v1"}
    rows[2]["path_prefixes"] = ["/n"]
    for row in rows:
        row["origins"] = ["https://" + row["base"].split("/")[2]]
        row |= changes.get(row["name"], {})
    return {
        "formats": {"openai": {"/chat/completions": "openai_chat"}, "anthropic": {"/messages": "anthropic_messages"}},
        "default_models": {"big-*": "second", "third/odd": "first"} | changes.get("default_models", {}),
        "provider": rows,
    }


def book(**models: list[str]) -> PriceBook:
    price = Tariff(Rates(input_mtok=10**18))
    priced = {
        provider: ProviderPrices(
            tuple(PricedModel(Clause("equals", name), ModelPrice(model=name, standard=price)) for name in names)
        )
        for provider, names in models.items()
    }
    return PriceBook(BookContent(priced, {}, {}))


BOOK = book(first=["shared", "mine", "sub/name"], second=["shared", "big-1", "theirs"], third=["shared", "big-1"])


def catalogue(*names: str, providers: Providers | None = None) -> Catalogue:
    return Catalogue(providers or parse(table()), frozenset(names or ("first", "second", "secondNative", "third")))


@pytest.mark.parametrize(
    ("name", "provider", "model"),
    [
        ("big-7", "second", "big-7"),
        ("BIG-7", "second", "BIG-7"),
        ("third/odd", "first", "third/odd"),
        ("third/even", "third", "even"),
        ("THIRD/big-1", "third", "big-1"),
        ("first/sub/name", "first", "sub/name"),
        ("sub/name", "first", "sub/name"),
        ("mine", "first", "mine"),
        ("shared", "first", "shared"),
        ("theirs", "second", "theirs"),
    ],
)
def test_the_order_of_the_rules(name, provider, model):
    asked = catalogue().find(name, BOOK)
    assert asked is not None and (asked.provider.name, asked.model) == (provider, model)


@pytest.mark.parametrize("name", ["nobodys", "", "first/", "/first", "nobody/x"])
def test_what_nobody_has(name):
    assert catalogue().find(name, BOOK) is None


def test_those_with_a_key_here_come_first():
    asked = catalogue("third").find("shared", BOOK)
    assert asked is not None and asked.provider.name == "third"


def test_the_routes_own_provider_has_names_that_no_price_knows():
    asked = catalogue().find("unpriced", BOOK, owner="third")
    assert asked is not None and (asked.provider.name, asked.rule) == ("third", "route")


def test_a_callers_key_is_not_sent_to_the_first_of_several():
    with pytest.raises(ObolError) as refused:
        catalogue().find("shared", BOOK, own_key=True)
    assert (refused.value.code, refused.value.param) == ("forward_model_not_supported", "model")
    for name in ("theirs", "big-1", "first/shared"):
        assert catalogue().find(name, BOOK, own_key=True) is not None


def test_a_callers_key_is_not_sent_elsewhere_than_the_name_says():
    """By default another provider has it than the one before the slash."""
    with pytest.raises(ObolError) as refused:
        catalogue().find("third/odd", BOOK, own_key=True)
    assert "first/third/odd" in refused.value.message
    asked = catalogue().find("first/third/odd", BOOK, own_key=True)
    assert asked is not None and (asked.provider.name, asked.model) == ("first", "third/odd")


def test_a_callers_key_needs_a_model_where_several_have_the_route():
    assert CHAT is not None and MESSAGES is not None
    with pytest.raises(ObolError) as refused:
        catalogue().first_with(CHAT, own_key=True)
    assert (refused.value.code, refused.value.param) == ("forward_model_invalid", "model")
    assert catalogue("second").first_with(CHAT).name == "second"
    only = parse(table(first={"drop_in": []}))
    assert catalogue("third", providers=only).first_with(CHAT, own_key=True).name == "second"


def test_a_model_that_is_published_without_a_price_is_on_offer_nowhere():
    unpriced = PricedModel(Clause("equals", "shown"), ModelPrice(model="shown", standard=Tariff(Rates())))
    without = PriceBook(BookContent({"first": ProviderPrices((unpriced,))}, {}, {}))
    assert catalogue().find("shown", without) is None and catalogue().offers(without) == ()


def test_new_prices_are_another_answer():
    one = catalogue()
    assert one.find("late", BOOK) is None
    assert one.find("late", book(third=["late"])) is not None


def test_an_api_may_have_a_base_of_its_own_or_a_row():
    one, providers = catalogue(), parse(table())
    second, third = providers.by_name("second"), providers.by_name("third")
    assert one.url(second, CHAT, "m") == "https://second.example.com/v1/chat/completions"
    assert one.url(second, MESSAGES, "m") == "https://second.example.com/anthropic/v1/messages"
    assert one.url(third, CHAT, "m") is None
    only = parse(table(second={"drop_in": ["openai"], "bases": {}}))
    assert (
        catalogue(providers=only).url(only.by_name("second"), MESSAGES, "m") == "https://second.example.com/n/messages"
    )


def test_what_is_on_offer_can_be_asked_for_and_has_a_price():
    one = catalogue()
    offers = one.offers(BOOK)
    assert [(offer.name, offer.provider) for offer in offers] == [
        ("shared", "first"),
        ("mine", "first"),
        ("sub/name", "first"),
        ("second/shared", "second"),
        ("big-1", "second"),  # of third it can be had too, but by default it is the second's
        ("theirs", "second"),
        ("third/shared", "third"),
    ]
    assert one.offers(BOOK) is offers
    assert {offer.provider for offer in catalogue("third").offers(BOOK)} == {"third"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"default_models": {"x": "nobody"}}, "unknown provider 'nobody'"),
        ({"default_models": {"*": "first"}}, "'*' is no name"),
        ({"default_models": {"a*b": "first"}}, "'a*b' is no name"),
        ({"default_models": {"a": 1}}, "default_models"),
        ({"first": {"bases": {"opnai": "https://first.example.com/v2"}}}, "'opnai' is none of"),
        ({"first": {"bases": {"openai": "https://else.example.com/v2"}}}, "must lie below one of origins"),
        ({"first": {"drop_in": ["opnai"]}}, "'opnai' is none of"),
    ],
)
def test_a_table_that_cannot_be_is_refused(changes, told):
    with pytest.raises(ConfigurationError) as refused:
        parse(table(**changes))
    assert told in str(refused.value)
