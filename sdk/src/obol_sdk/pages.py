"""Pages of lists, newest first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Listed(msgspec.Struct, Generic[T], frozen=True):
    """A page as the server sends it."""

    data: list[T]
    has_more: bool = False
    next_cursor: str | None = None


class Page(Generic[T]):
    """`data` is this page; iterating gives its items and those of all pages behind it, fetched as they are needed."""

    def __init__(self, listed: Listed[T], fetch: Callable[[str], Page[T]]) -> None:
        self.data = listed.data
        self.next_cursor = listed.next_cursor
        self._fetch = fetch

    @property
    def has_more(self) -> bool:
        return self.next_cursor is not None

    def next_page(self) -> Page[T] | None:
        """None behind the last one."""
        return None if self.next_cursor is None else self._fetch(self.next_cursor)

    def __iter__(self) -> Iterator[T]:
        page: Page[T] | None = self
        while page is not None:
            yield from page.data
            page = page.next_page()


class AsyncPage(Generic[T]):
    """`data` is this page; `async for` gives its items and those of all pages behind it, fetched as they are needed."""

    def __init__(self, listed: Listed[T], fetch: Callable[[str], Awaitable[AsyncPage[T]]]) -> None:
        self.data = listed.data
        self.next_cursor = listed.next_cursor
        self._fetch = fetch

    @property
    def has_more(self) -> bool:
        return self.next_cursor is not None

    async def next_page(self) -> AsyncPage[T] | None:
        """None behind the last one."""
        return None if self.next_cursor is None else await self._fetch(self.next_cursor)

    async def __aiter__(self) -> AsyncIterator[T]:
        page: AsyncPage[T] | None = self
        while page is not None:
            for item in page.data:
                yield item
            page = await page.next_page()
