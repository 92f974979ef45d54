"""`obol prices`: lists and explains prices, computes an example, and keeps those of a merchant.

Prices are those that a gateway started now would use. With `--book` those of a stored book, as a charge names it in
`price_version`; with `--merchant` a merchant's own come first, as they do for its calls.
"""

from __future__ import annotations

import asyncio
import difflib
import gzip
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import asyncpg
import msgspec

from gateway import providers
from gateway.billing.merchant_prices import MerchantPrices, read_merchant_prices, unknown_names
from gateway.core.usage import Usage
from gateway.errors import ConfigurationError, ObolError
from gateway.ledger import scripts
from gateway.ledger.changes import Changes
from gateway.ledger.connection import Connection, LedgerAway
from gateway.ledger.keys import Keys
from gateway.prices import JOINT, Book, Found, MerchantBook, PriceBook, compile_book
from gateway.prices.explain import as_text, example, explained, rates_of
from gateway.settings import Settings
from gateway.store.postgres import Store

_ENGINE_WAIT_S = 5.0
_SHOWN_RATES = ("input_mtok", "cached_input_mtok", "output_mtok")


class Wanted(NamedTuple):
    """What the command line asks for."""

    provider: str | None = None
    model: str | None = None
    usage: Usage | None = None
    service_tier: str | None = None
    merchant_id: str | None = None
    version: str | None = None
    replace: Path | None = None
    clear: bool = False
    as_json: bool = False


def main(settings: Settings, wanted: Wanted, out: TextIO | None = None) -> int:
    """Return 0. Raise ConfigurationError where there is no such price, or the engines cannot be reached."""
    try:
        book = asyncio.run(_book(settings, wanted, out or sys.stdout))
    except (LedgerAway, ObolError, OSError, asyncpg.PostgresError) as error:
        raise ConfigurationError(f"the engines are not usable: {error}") from None
    if book is not None:
        (out or sys.stdout).write(show(book, wanted))
    return 0


async def _book(settings: Settings, wanted: Wanted, out: TextIO) -> Book | None:
    """The book to show; None where the command was to change a merchant's prices."""
    if wanted.replace or wanted.clear:
        await change(settings, wanted, out)
        return None
    if not wanted.merchant_id and not wanted.version:
        return compile_book(datetime.now(UTC))
    async with _store(settings) as store:
        book = await stored_book(store, wanted.version) if wanted.version else compile_book(datetime.now(UTC))
        if wanted.merchant_id is None:
            return book
        _, own = await MerchantPrices(store, _nobody).load(wanted.merchant_id)
        return book if own is None else MerchantBook(book, own)


async def _nobody(_: str) -> None:
    """Nothing was changed, so nobody is told."""


async def stored_book(store: Store, version: str) -> Book:
    """The book of a charge. Raise ConfigurationError where it is not stored."""
    books = []
    for each in version.split(JOINT):
        row = await store.row("prices.book", each)
        if row is None:
            raise ConfigurationError(f"there is no price book {each!r}")
        books.append(PriceBook.from_json(await asyncio.to_thread(gzip.decompress, row["content"])))
    return books[0] if len(books) == 1 else MerchantBook(books[0], books[1])


async def change(settings: Settings, wanted: Wanted, out: TextIO) -> None:
    """Store a merchant's prices, or forget them, and tell every gateway."""
    assert wanted.merchant_id is not None
    own = read_merchant_prices(wanted.replace) if wanted.replace else None
    if own is not None:
        _check_providers(own)
    async with _store(settings) as store, _ledger(settings) as connection:
        merchants = MerchantPrices(store, Changes(connection, Keys()).announce)
        merchant_id, _ = await merchants.load(wanted.merchant_id)
        if own is None:
            await merchants.clear(merchant_id)
            out.write(f"{merchant_id} has no prices of its own any more\n")
            return
        await merchants.replace(merchant_id, own)
        out.write(f"{merchant_id} has prices of its own for {own.own_models} models, version {own.version}\n")


def _check_providers(own: PriceBook) -> None:
    table = providers.load()
    for name in unknown_names(own, table):
        alike = _alike(name, {row.name for row in table})
        raise ConfigurationError(f"there is no provider {name!r}{alike}, and no host has this name")


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store]:
    if not settings.postgres_url:
        raise ConfigurationError("this needs OBOL_POSTGRES_URL, or the --data-dir of a running obol up")
    store = await Store.connect(settings.postgres_url, pool_max=2)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def _ledger(settings: Settings) -> AsyncIterator[Connection]:
    if not settings.redis_url:
        raise ConfigurationError("this needs OBOL_REDIS_URL, or the --data-dir of a running obol up")
    connection = Connection(settings.redis_url, scripts.load(), timeout_ms=settings.redis_timeout_ms)
    keeper = asyncio.create_task(connection.run(), name="redis connection")
    try:
        await connection.wait_ready(_ENGINE_WAIT_S)
        yield connection
    finally:
        await connection.close()
        keeper.cancel()
        await asyncio.wait([keeper])


def show(book: Book, wanted: Wanted) -> str:
    """The answer, as text or JSON. Raise ConfigurationError for a provider or a model without a price."""
    if wanted.provider is None:
        return _providers(book, wanted)
    provider = _known_provider(book, wanted.provider)
    if wanted.model is None:
        return _models(book, provider, wanted)
    found = book.locate(provider, wanted.model)
    if found is None:
        alike = _alike(wanted.model, {name for name, _ in book.priced(provider)})
        raise ConfigurationError(f"there is no price for the model {wanted.model!r} of {provider}{alike}")
    data = explained(book, provider, wanted.model, found)
    if wanted.version:
        del data["valid_until"]  # of the past
    if wanted.usage is not None:
        data["example"] = example(found.price, wanted.usage, wanted.service_tier)
    return _json(data) if wanted.as_json else as_text(data)


def _known_provider(book: Book, name: str) -> str:
    known = {row.name for row in providers.load()} | book.own_providers
    found = next((each for each in sorted(known) if each.lower() == name.lower()), None)
    if found is None:
        raise ConfigurationError(f"there is no provider {name!r}{_alike(name, known)}")
    return found


def _alike(name: str, known: Iterable[str]) -> str:
    alike = difflib.get_close_matches(name, sorted(known), n=3)
    return f" (perhaps {', '.join(alike)})" if alike else ""


def _providers(book: Book, wanted: Wanted) -> str:
    """How many models of each provider are priced, by whom."""
    names = [row.name for row in providers.load()]
    names += sorted(book.own_providers - set(names))
    counts = {name: Counter(found.source for _, found in book.priced(name)) for name in names}
    if wanted.as_json:
        return _json({"version": book.version, "providers": counts})
    lines = [f"version {book.version}", ""]
    for name, by_source in counts.items():
        shown = ", ".join(f"{number} {source}" for source, number in by_source.items())
        lines.append(f"{name:<24} {shown or 'no published prices: see config/prices.toml'}")
    return "\n".join(lines) + "\n"


def _models(book: Book, provider: str, wanted: Wanted) -> str:
    """The models of a provider, a line each: dollars a million tokens in, cached, out; what else there is."""
    first: dict[str, Found] = {}
    for name, found in book.priced(provider):
        first.setdefault(name, found)
    if not first:
        raise ConfigurationError(f"no prices of {provider} are published: add them to config/prices.toml")
    if wanted.as_json:
        models = [{"model": name, **explained(book, provider, name, found)} for name, found in first.items()]
        return _json({"version": book.version, "provider": provider, "models": models})
    lines = [
        f"{'model':<48} {'source':<10} {'input':>9} {'cached':>9} {'output':>9}  (USD a million tokens) and others"
    ]
    for name, found in first.items():
        rates = rates_of(found.price.standard.rates)
        columns = " ".join(f"{rates.pop(rate, '-'):>9}" for rate in _SHOWN_RATES)
        others = [f"{rate}={amount}" for rate, amount in rates.items()]
        others += [f"above {band.above_input_tokens:,} tokens" for band in found.price.standard.bands]
        others += [f"tier {tier}" for tier in found.price.service_tiers]
        lines.append(f"{name:<48} {found.source:<10} {columns}  {', '.join(others)}".rstrip())
    return "\n".join(lines) + "\n"


def _json(data: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n"
