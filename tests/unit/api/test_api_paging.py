"""Cursors and page objects."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import paging
from gateway.api.operation import Page, convert, encode
from gateway.errors import ObolError

MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC))
NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=255)


@given(MOMENTS, NAMES)
def test_a_cursor_leads_back_to_its_place(moment: datetime, name: str) -> None:
    place = paging.Place(moment, name)
    shown = paging.page([place, place], paging.Window(place, 1), lambda item: item, lambda item: item.id)
    assert isinstance(shown.next_cursor, str)
    assert paging.window(Page(7, shown.next_cursor)) == paging.Window(place, 7)


@given(st.text(max_size=60))
def test_whatever_is_sent_as_cursor_is_read_or_refused(cursor: str) -> None:
    try:
        paging.window(Page(cursor=cursor))
    except ObolError as error:
        assert (error.status, error.param) == (400, "cursor")


def test_the_last_page_has_no_cursor() -> None:
    asked = paging.Window(paging.NEWEST, 3)
    last = paging.page([1, 2, 3], asked, lambda _: paging.NEWEST, str)
    assert encode(last) == b'{"data":["1","2","3"],"has_more":false}'


@pytest.mark.parametrize("limit", ["0", "101", "x", "-1", "1.5", "٣", " 5", "9" * 9])
def test_limits_out_of_range(limit: str) -> None:
    with pytest.raises(ObolError) as refused:
        convert({"limit": limit}, Page, text=True)
    assert refused.value.param == "limit"


@pytest.mark.parametrize("moment", [datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, tzinfo=UTC)])
def test_nothing_is_older_than_1970(moment: datetime) -> None:
    with pytest.raises(ObolError) as refused:
        paging.window(Page(cursor=paging._cursor(paging.Place(moment, "a"))))
    assert refused.value.param == "cursor"
