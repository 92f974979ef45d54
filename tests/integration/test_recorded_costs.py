"""The cost of every recorded exchange, as metered from its bytes, beside genai-prices' own answer in Decimal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

import independent_cost
import pytest
from recorded_exchanges import Recorded, exchanges
from recorded_metering import Metered, metered

from gateway import providers
from gateway.core.price import Cost
from gateway.errors import ObolError
from gateway.prices import Book, compile_book


@pytest.fixture(scope="module")
def book() -> Book:
    return compile_book(datetime.now(UTC))


def costs(book: Book, one: Recorded, found: Metered) -> tuple[Cost | None, int | None]:
    """The book's, and the independent one. As in the proxy, the model that answered is priced where it has a price."""
    reading = found.reading
    known = reading.model is not None and book.find(found.provider, reading.model) is not None
    model = reading.model if known else found.asked or reading.model
    if model is None or reading.usage is None:
        return None, None
    row = {"model": model, "service_tier": reading.service_tier}
    cost = book.cost(found.provider, model, reading.usage, reading.service_tier)
    return cost, independent_cost.cost_nano(one, found.provider, row)


def test_every_recorded_exchange_costs_what_genai_prices_says(book: Book) -> None:
    table, outcome, wrong = providers.load(), Counter[str](), {}
    seen, compared = set(), set()
    for one in exchanges():
        if one.exchange.status >= 400:
            outcome["refused by its provider"] += 1
            continue
        try:
            found = metered(table, one)
        except ObolError:
            outcome["refused here"] += 1
            continue
        seen.add((found.provider, found.format))
        if found.reading.usage is None or found.reading.estimated:
            outcome["counted here, or free"] += 1
            continue
        cost, expected_nano = costs(book, one, found)
        if expected_nano is None:
            outcome["no published price" if cost is None else "figures that genai-prices refuses"] += 1
        elif cost is None or cost.total_nano != expected_nano:
            wrong[one.id] = (cost, expected_nano, found)
        else:
            outcome["the same cost"] += 1
            compared.add((found.provider, found.format))
    print(f"\n{len(exchanges())} exchanges, {_kinds(seen)}: {dict(outcome)}; compared {_kinds(compared)}")
    assert not wrong, f"{len(wrong)}: {wrong}"
    assert outcome.total() == len(exchanges()) >= 1_012 and not outcome["refused here"]
    assert outcome["the same cost"] >= 690 and outcome["counted here, or free"] <= 40
    assert len({name for name, _ in compared}) >= 26 and len({name for _, name in compared}) >= 15


def _kinds(pairs: Iterable[tuple[str, str]]) -> str:
    pairs = list(pairs)
    return f"{len({name for name, _ in pairs})} providers in {len({name for _, name in pairs})} formats"
