"""The price book: what every known model costs at every known provider, compiled once at start, integers only."""

from gateway.prices.book import (
    JOINT,
    MEMOISED_NAMES_MAX,
    PRECEDENCE,
    Book,
    BookContent,
    Found,
    MerchantBook,
    PriceBook,
    merchants_book,
)
from gateway.prices.own import read_operator_prices
from gateway.prices.published import GENAI_NAMES, compile_book

__all__ = [
    "GENAI_NAMES",
    "JOINT",
    "MEMOISED_NAMES_MAX",
    "PRECEDENCE",
    "Book",
    "BookContent",
    "Found",
    "MerchantBook",
    "PriceBook",
    "compile_book",
    "merchants_book",
    "read_operator_prices",
]
