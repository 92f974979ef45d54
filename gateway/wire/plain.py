"""Any other call: forwarded and priced by the request, nothing is read from it."""

from __future__ import annotations

from gateway.wire.base import BaseFormat
from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.meters import SilentMeter


class Plain(BaseFormat):
    """No token usage; the body may be anything."""

    name = "plain"

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        return RequestFacts()

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        return SilentMeter()
