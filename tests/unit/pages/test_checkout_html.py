"""Amounts and origins as the checkout shows and tells them."""

from __future__ import annotations

import pytest

from gateway.pages.checkout_html import dollars, origin_of


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0.00"),
        (25 * 10**9, "$25.00"),
        (12_500_000_000, "$12.50"),
        (1_234_567 * 10**9, "$1,234,567.00"),
        (5, "$0.000000005"),
    ],
)
def test_dollars(nano: int, text: str) -> None:
    assert dollars(nano) == text


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://App.Example.com", "https://app.example.com"),
        ("https://app.example.com:443/page?x=1#y", "https://app.example.com"),
        ("http://127.0.0.1:3000/", "http://127.0.0.1:3000"),
        ("http://localhost:80", "http://localhost"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
    ],
)
def test_an_origin_is_written_as_browsers_do(url: str, origin: str) -> None:
    assert origin_of(url) == origin
