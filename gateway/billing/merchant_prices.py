"""A merchant's own prices of providers' models: kept in PostgreSQL, before the installation's for its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway.errors import ConfigurationError
from gateway.prices import Book, BookContent, PriceBook, merchants_book, read_operator_prices
from gateway.providers import Providers
from gateway.store.postgres import Store

MODELS_MAX = 200
"""Of one merchant: its book is decoded when the merchant is looked up."""


def read_merchant_prices(path: Path) -> PriceBook:
    """The prices of a file, written as config/prices.toml is. Raise ConfigurationError naming the entry at fault."""
    book = PriceBook(BookContent(read_operator_prices(path), {}, {}))
    if not 1 <= book.own_models <= MODELS_MAX:
        raise ConfigurationError(f"{path} has prices of {book.own_models:,} models; a merchant has 1 to {MODELS_MAX:,}")
    return book


def unknown_names(book: Book, table: Providers) -> list[str]:
    """Names in prices of one's own that are neither a provider nor a host: misspelt, they would price nothing."""
    known = {provider.name for provider in table}
    return sorted(name for name in book.own_providers if name not in known and "." not in name)


class MerchantPrices:
    """`announce` tells every process that something of a merchant changed (`ledger/changes.py`)."""

    def __init__(self, store: Store, announce: Callable[[str], Awaitable[None]]) -> None:
        self._store = store
        self._announce = announce

    async def load(self, named: str) -> tuple[str, PriceBook | None]:
        """The merchant of this id (its own, or that of a connection or meter of it), and its prices. Raise
        ConfigurationError where there is none."""
        row = await self._store.row("prices.merchant", named)
        if row is None:
            raise ConfigurationError(f"there is no merchant, connection or meter with the id {named!r}")
        return row["merchant_id"], merchants_book(row["content"]) if row["content"] is not None else None

    async def replace(self, merchant_id: str, book: PriceBook) -> None:
        """From now on these prices, and no other ones of its own. What was charged keeps the version it names."""
        content = await asyncio.to_thread(book.stored)
        async with self._store.transaction() as db:
            await db.execute(self._store.sql("prices.insert_book"), book.version, content)
            await db.execute(self._store.sql("prices.set_merchant"), merchant_id, book.version)
        await self._announce(merchant_id)

    async def clear(self, merchant_id: str) -> None:
        """From now on only the installation's prices."""
        await self._store.execute("prices.clear_merchant", merchant_id)
        await self._announce(merchant_id)
