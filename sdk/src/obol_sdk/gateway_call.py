"""A call of a provider through the gateway, as what httpx2 sends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import quote

import msgspec

from obol_sdk.base_urls import BaseUrls
from obol_sdk.tokens import TokenFields, forward_token

TIMEOUT_S = 600.0


class GatewayOptions(TokenFields, total=False):
    """`json` or `content` is the body. The customer and the meter as in `forward_token`; without them the call is the
    merchant's own. `dialect`: the body is in this vendor's, and the answer comes back in it. `metadata`: kept on the
    request's row. With an `idempotency_key` a POST is made once, whatever is sent again.
    """

    method: str
    json: Any
    content: bytes | str
    headers: Mapping[str, str]
    dialect: Literal["openai", "anthropic", "google"]
    metadata: Mapping[str, str]
    idempotency_key: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class GatewayCall:
    """`repeatable`: sent again it is not made, and billed, again."""

    method: str
    url: str
    headers: dict[str, str]
    content: bytes | str | None
    timeout_s: float
    repeatable: bool


def gateway_call(base_urls: BaseUrls, secret_key: str, url: str, options: GatewayOptions) -> GatewayCall:
    """Raise ValueError where the options contradict each other, TypeError where there is no such option."""
    unknown = options.keys() - GatewayOptions.__optional_keys__
    if unknown:  # a customer_id that is misspelt would make the call the merchant's own
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    if "json" in options and "content" in options:
        raise ValueError("json and content are both the body: give one of them")
    method, headers = options.get("method", "POST").upper(), _headers(secret_key, options)
    content = options.get("content")
    if "json" in options:
        content = msgspec.json.encode(options["json"])
        headers.setdefault("content-type", "application/json")
    repeatable = method in ("GET", "HEAD") or "idempotency-key" in headers
    timeout_s = options.get("timeout_s", TIMEOUT_S)
    return GatewayCall(method, _address(base_urls, url, options), headers, content, timeout_s, repeatable)


def _address(base_urls: BaseUrls, url: str, options: GatewayOptions) -> str:
    if "dialect" in options:
        return base_urls.rewrite(options["dialect"], url)
    return base_urls.forward(quote(url, safe=""))


def _headers(secret_key: str, options: GatewayOptions) -> dict[str, str]:
    fields = {name: value for name, value in options.items() if name in TokenFields.__optional_keys__}
    token = forward_token(secret_key, **cast(TokenFields, fields))
    headers = {name.lower(): value for name, value in options.get("headers", {}).items()}
    headers["authorization"] = f"Bearer {token}"
    if "metadata" in options:
        # json.dumps writes ASCII, as headers must be.
        headers["x-lava-metadata"] = json.dumps(dict(options["metadata"]), separators=(",", ":"))
    if "idempotency_key" in options:
        headers["idempotency-key"] = options["idempotency_key"]
    return headers
