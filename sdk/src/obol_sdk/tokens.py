"""Forward tokens: base64 of a JSON object, made here without a call."""

from __future__ import annotations

from base64 import b64encode
from typing import TypedDict

import msgspec


class TokenFields(TypedDict, total=False):
    """What `forward_token` takes, for those that hand it on."""

    customer_id: str | None
    meter_slug: str | None
    connection_secret: str | None
    product_secret: str | None
    provider_key: str | None
    disable_billing: bool


def forward_token(
    secret_key: str,
    *,
    customer_id: str | None = None,
    meter_slug: str | None = None,
    connection_secret: str | None = None,
    product_secret: str | None = None,
    provider_key: str | None = None,
    disable_billing: bool = False,
) -> str:
    """The key of one customer's calls by one meter. Raise ValueError for combinations that no gateway takes.

    The customer by id, reference id or secret, the meter by slug, id or secret. With neither the call is the
    merchant's own, with a meter alone it is recorded under the meter, and nobody is charged.
    """
    if customer_id and connection_secret:
        raise ValueError("customer_id and connection_secret both name the customer: give one of them")
    if meter_slug and product_secret:
        raise ValueError("meter_slug and product_secret both name the meter: give one of them")
    meter = meter_slug or product_secret
    if customer_id and not meter:
        raise ValueError("customer_id needs a meter_slug: by which meter is the customer charged?")
    if disable_billing and not ((customer_id or connection_secret) and meter):
        raise ValueError("disable_billing needs a customer and a meter")
    fields = {
        "secret_key": secret_key,
        "customer_id": customer_id,
        "meter_slug": meter_slug,
        "connection_secret": connection_secret,
        "product_secret": product_secret,
        "provider_key": provider_key,
        "disable_billing": disable_billing or None,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return b64encode(msgspec.json.encode(given)).decode()
