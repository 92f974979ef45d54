"""Client of Obol, the self-hosted usage-based-billing gateway.

    obol = Obol("aks_test_...", base_url="http://127.0.0.1:8080")     # or OBOL_SECRET_KEY and OBOL_BASE_URL
    customer = obol.customers.create(reference_id="user-7")

`AsyncObol` has the same methods, awaited. Amounts are `Decimal`, times `datetime`; what goes wrong is an `ObolError`.
"""

from msgspec import UNSET

from obol_sdk import models, webhooks
from obol_sdk.base_urls import BaseUrls
from obol_sdk.client import AsyncObol, Obol
from obol_sdk.errors import (
    ApiError,
    AuthenticationError,
    ConflictError,
    ConnectionFailedError,
    InvalidRequestError,
    NotFoundError,
    ObolError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    UnexpectedAnswerError,
)
from obol_sdk.pages import AsyncPage, Page

__version__ = "0.1.0"
__all__ = [
    "UNSET",
    "ApiError",
    "AsyncObol",
    "AsyncPage",
    "AuthenticationError",
    "BaseUrls",
    "ConflictError",
    "ConnectionFailedError",
    "InvalidRequestError",
    "NotFoundError",
    "Obol",
    "ObolError",
    "Page",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServerError",
    "UnexpectedAnswerError",
    "models",
    "webhooks",
]
