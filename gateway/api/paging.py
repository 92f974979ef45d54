"""Pages, newest first, by keyset: a cursor is the place of the last item shown, so pages stay stable under inserts."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

import msgspec

from gateway.api.operation import Page
from gateway.api.reading import invalid

LIMIT_DEFAULT = 10
LIMIT_MAX = 100
BARE_LIST_MAX = 1_000
"""The clients that read a list without pages are shown the newest."""
_CURSOR_MAX_CHARACTERS = 2_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Item = TypeVar("Item")
Shown = TypeVar("Shown")


class Listed(msgspec.Struct, Generic[Shown]):
    """One page of a list. `next_cursor` is there only where there are more: clients go on while there is one."""

    data: list[Shown]
    has_more: bool
    next_cursor: str | msgspec.UnsetType = msgspec.UNSET


class Place(NamedTuple):
    """Where a page begins: behind the item with this time (UTC, microseconds) and id."""

    created_at: datetime
    id: str


NEWEST = Place(datetime(9999, 1, 1, tzinfo=UTC), "")


class Window(NamedTuple):
    """What a list request asks for: at most `limit` items behind `after`."""

    after: Place
    limit: int

    @property
    def fetch(self) -> int:
        """One more than is shown tells whether there is another page."""
        return self.limit + 1


def window(query: Page) -> Window:
    """What it asks for; LIMIT_DEFAULT items where it does not say. Raise ObolError naming `cursor`."""
    return Window(_place(query.cursor or ""), query.limit or LIMIT_DEFAULT)


def page(
    items: Sequence[Item], asked: Window, place: Callable[[Item], Place], show: Callable[[Item], Shown]
) -> Listed[Shown]:
    """The page object of `items`, which were fetched with `asked.fetch` as limit."""
    shown = items[: asked.limit]
    data = [show(item) for item in shown]
    if len(items) <= asked.limit:
        return Listed(data, has_more=False)
    return Listed(data, has_more=True, next_cursor=_cursor(place(shown[-1])))


def _cursor(place: Place) -> str:
    created_us = (place.created_at - _EPOCH) // timedelta(microseconds=1)
    return urlsafe_b64encode(f"{created_us}:{place.id}".encode()).decode().rstrip("=")


def _place(cursor: str) -> Place:
    if not cursor:
        return NEWEST
    try:
        if len(cursor) > _CURSOR_MAX_CHARACTERS:
            raise ValueError("too long")
        created_us, _, name = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(":")
        if not (created_us.isascii() and created_us.isdigit()):  # nothing is older than 1970
            raise ValueError("no time")
        created_at = _EPOCH + timedelta(microseconds=int(created_us))
    except (ValueError, OverflowError, binascii.Error):
        raise invalid("cursor", "is not one that this API gave out") from None
    if not name or not name.isprintable():
        raise invalid("cursor", "is not one that this API gave out")
    return Place(created_at, name)
