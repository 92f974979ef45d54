"""Moderations, which OpenAI does not bill. Where others do, the provider table does not name them."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.wire.base import BaseFormat
from gateway.wire.contract import RequestFacts
from gateway.wire.requests import decode_body, optional_model


class Request(msgspec.Struct):
    model: Any = None


class Moderations(BaseFormat):
    """`/moderations`."""

    name = "moderations"

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        return RequestFacts(model=optional_model(decode_body(body, Request).model), free=True)
